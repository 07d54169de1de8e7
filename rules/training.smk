# Needs: manifest and metrics of the stage before, which must pass its gates, the split, desktops, envs/cpu or
# envs/gpu, recorded episodes of the base policy for arms that preload them. Makes: the manifest of the stage's
# weights, its metrics per step, and the judgement on its own gates. Weights, checkpoints, replay buffer and
# training episodes lie beside the manifest in folders that Snakemake does not know: a killed stage goes on from
# them.


rule train_stage:
    input:
        parent=study.previous_manifest,
        before=study.previous_metrics,
        image=ancient(study.desktop_image()),
        split=lambda wildcards: f"<results>/splits/{study.config.stage(wildcards.stage).split}.json",
        episodes=study.preloaded_indexes,
    output:
        manifest="<results>/models/{arm}/seed_{seed}/stage_{stage}/manifest.json",
        metrics="<results>/models/{arm}/seed_{seed}/stage_{stage}/metrics.jsonl",
    log:
        "<logs>/train_stage/{arm}.seed_{seed}.{stage}.log",
    benchmark:
        "<benchmarks>/train_stage/{arm}.seed_{seed}.{stage}.tsv"
    wildcard_constraints:
        arm=any_of(study.config.online_arms),
    threads: study.config.threads
    resources:
        mem_mb=asked.train_memory,
        runtime=asked.train_minutes,
        cpus_per_task=study.config.threads,
        nodes=asked.train_nodes,
        tasks=asked.train_tasks,
        gres=asked.train_gpus,
    params:
        decides=decides(study.config, "train_stage"),
    script:
        "../scripts/train_stage.py"


rule check_stage:
    input:
        manifest="<results>/models/{arm}/seed_{seed}/stage_{stage}/manifest.json",
        metrics="<results>/models/{arm}/seed_{seed}/stage_{stage}/metrics.jsonl",
    output:
        "<results>/models/{arm}/seed_{seed}/stage_{stage}/stage_report.json",
    log:
        "<logs>/check_stage/{arm}.seed_{seed}.{stage}.log",
    wildcard_constraints:
        arm=any_of(study.config.online_arms),
    priority: 1
    localrule: True
    params:
        decides=decides(study.config, "check_stage"),
    script:
        "../scripts/check_stage.py"
