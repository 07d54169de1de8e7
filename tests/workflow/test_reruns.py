"""Rules touched by a change run again, others do not."""

from __future__ import annotations

AFTER_ROLLOUTS = {
    "score_episodes",
    "summarise_study",
    "compare_claims",
    "write_tables",
    "write_provenance",
    "render_report",
}


def test_nothing_to_do_after_a_finished_study(finished):
    assert finished.planned() == {}


def test_editing_the_report_template_renders_the_page_alone(finished):
    template = next((finished.root / "src/arpo_replica/report").rglob("*.j2"))
    template.write_text(template.read_text() + "\n")
    assert finished.planned() == {"render_report": 1}


def test_more_trials_collect_rollouts_but_train_nothing(finished):
    finished.edit("configs/demo.yaml", "  trials: 2", "  trials: 3")
    planned = finished.planned()
    assert planned["collect_rollouts"] == 3
    assert set(planned) == {"collect_rollouts", "write_config"} | AFTER_ROLLOUTS


def test_a_recipe_key_of_one_arm_leaves_the_other_arm_alone(finished):
    finished.edit(
        "configs/demo.yaml", "{replay: {enabled: true}}", "{replay: {enabled: true, capacity_per_task: 4}}"
    )
    planned = finished.planned()
    assert planned["train_stage"] == 2
    assert planned["collect_rollouts"] == 1
    assert "build_nano_model" not in planned


def test_a_changed_test_task_trains_nothing(finished):
    listed = (finished.root / "data/splits/miniwob_test_out.json").read_text()
    task = next(path for path in (finished.root / "data/tasks/miniwob").glob("*.json") if path.stem in listed)
    task.write_text(task.read_text().replace('"instruction"', ' "instruction"'))
    planned = finished.planned()
    assert planned["collect_rollouts"] == 3
    assert planned["resolve_split"] == 1
    assert "train_stage" not in planned


def test_more_steps_in_the_last_stage_keep_the_first(finished):
    finished.edit(
        "configs/demo.yaml",
        "name: train_32, split: train_32, steps: 3",
        "name: train_32, split: train_32, steps: 4",
    )
    planned = finished.planned()
    assert planned["train_stage"] == 2
    assert "record_demonstrations" not in planned


def test_the_number_of_desktops_changes_no_result(finished):
    finished.edit("configs/demo.yaml", "  count: 8", "  count: 3")
    planned = finished.planned()
    assert set(planned) <= {"write_config", "write_provenance", "render_report"}
