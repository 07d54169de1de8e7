# Needs: a manifest of weights, the evaluated splits, desktops, vLLM. Makes: one index of episodes for each
# split and trial. One job, and one start of vLLM, for all splits and trials of a checkpoint; the episodes lie
# beside their index in folders that Snakemake does not know: a killed job keeps all that it finished.


rule collect_rollouts:
    input:
        # ancient: another guest server alone makes no other episodes, as with desktops without an image
        image=ancient(study.desktop_image()),
        manifest="<results>/models/{arm}/seed_{seed}/stage_{stage}/manifest.json",
        splits=expand(
            "<results>/splits/{split}.json", split=study.config.evaluation.splits
        ),
    output:
        study.episode_indexes("<results>/<episodes>"),
    log:
        "<logs>/collect_rollouts/{arm}.seed_{seed}.{stage}.log",
    benchmark:
        "<benchmarks>/collect_rollouts/{arm}.seed_{seed}.{stage}.tsv"
    threads: study.config.threads
    resources:
        mem_mb=asked.rollout_memory,
        runtime=asked.rollout_minutes,
        cpus_per_task=study.config.threads,
        gres=asked.rollout_gpus,
    params:
        decides=decides(study.config, "collect_rollouts"),
    script:
        "../scripts/collect_rollouts.py"
