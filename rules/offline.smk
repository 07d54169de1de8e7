# Needs: the base policy's manifest, the split that offline and preloading arms learn from, desktops, vLLM,
# envs/cpu or envs/gpu. Makes: episodes of the base policy, sampled as in training, and the manifests of the
# arms that learn from them (rejection sampling, DPO, KTO). Such an arm's one training stands where other arms
# have their last stage.


rule collect_offline_episodes:
    input:
        image=ancient(study.desktop_image()),
        manifest="<results>/models/base/seed_0/stage_base/manifest.json",
        split=f"<results>/splits/{study.config.offline_split}.json",
    output:
        study.offline_indexes(),
    log:
        "<logs>/collect_offline_episodes.log",
    benchmark:
        "<benchmarks>/collect_offline_episodes.tsv"
    threads: study.config.threads
    resources:
        mem_mb=asked.rollout_memory,
        runtime=asked.longer_minutes,
        cpus_per_task=study.config.threads,
        gres=asked.rollout_gpus,
    params:
        decides=decides(study.config, "collect_offline_episodes"),
    script:
        "../scripts/collect_offline_episodes.py"


rule train_offline:
    input:
        parent="<results>/models/base/seed_0/stage_base/manifest.json",
        episodes=study.offline_indexes(),
    output:
        manifest="<results>/models/{arm}/seed_{seed}/stage_{stage}/manifest.json",
        learning="<results>/models/{arm}/seed_{seed}/stage_{stage}/learning.jsonl",
    log:
        "<logs>/train_offline/{arm}.seed_{seed}.{stage}.log",
    benchmark:
        "<benchmarks>/train_offline/{arm}.seed_{seed}.{stage}.tsv"
    wildcard_constraints:
        arm=any_of(study.config.offline_arms),
    threads: study.config.threads
    resources:
        mem_mb=asked.rollout_memory,
        runtime=asked.longer_minutes,
        cpus_per_task=study.config.threads,
        gres=asked.offline_gpus,
    params:
        decides=decides(study.config, "train_offline"),
    script:
        "../scripts/train_offline.py"
