"""Figure 6: which jobs the offline arms add, and what makes them run again."""

from __future__ import annotations

OVERLAID = ("--configfile", "configs/demo.yaml", "configs/arms/offline.yaml")
ADDED = {"collect_offline_episodes": 1, "train_offline": 3, "collect_rollouts": 3}


def test_the_default_study_plans_no_offline_arm(checkout):
    assert not {"collect_offline_episodes", "train_offline"} & set(checkout.planned())


def test_figure_6_needs_one_set_of_episodes_and_one_training_of_each_method(checkout):
    planned = checkout.planned(*OVERLAID, "--", "fig6")
    assert {rule: n for rule, n in planned.items() if rule not in {"resolve_split", "check_stage"}} == {
        **{"record_demonstrations": 1, "build_nano_model": 1, "register_model": 1},
        **{"train_stage": 4, "make_target": 1, "fig6": 1},
        **ADDED,
        "collect_rollouts": 6,
    }


def test_offline_arms_are_added_to_a_finished_study(finished):
    planned = finished.planned(*OVERLAID, "--", "fig6")
    assert planned == {**ADDED, "make_target": 1, "fig6": 1}


def test_an_arm_of_its_own_and_more_episodes_train_no_online_arm(finished):
    done = finished.run("--cores", "4", *OVERLAID)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not finished.planned(*OVERLAID)
    finished.edit("configs/arms/offline.yaml", "{method: kto}", "{method: kto, beta: 0.2}")
    planned = finished.planned(*OVERLAID)
    assert (planned["train_offline"], planned["collect_rollouts"]) == (1, 1)
    assert not {"train_stage", "collect_offline_episodes"} & set(planned)
    finished.edit("configs/arms/offline.yaml", "\narms:", "\noffline: {rollouts_per_task: 9}\narms:")
    planned = finished.planned(*OVERLAID)
    assert (planned["collect_offline_episodes"], planned["train_offline"]) == (1, 3)
    assert "train_stage" not in planned
