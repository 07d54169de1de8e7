# Needs: the manifest of the stage before, the split, desktops, envs/cpu. Makes: the manifest of the
# stage's weights and its metrics per step. Weights, checkpoints, replay buffer and training episodes lie
# beside the manifest in folders that Snakemake does not know: a killed stage goes on from them.


rule train_stage:
    input:
        parent=previous_manifest,
        split=stage_split,
    output:
        manifest="<results>/models/{arm}/seed_{seed}/stage_{stage}/manifest.json",
        metrics="<results>/models/{arm}/seed_{seed}/stage_{stage}/metrics.jsonl",
    log:
        "<logs>/train_stage/{arm}.seed_{seed}.{stage}.log",
    benchmark:
        "<benchmarks>/train_stage/{arm}.seed_{seed}.{stage}.tsv"
    wildcard_constraints:
        arm=study.trained_arms_pattern,
    threads: study.config.threads
    resources:
        mem_mb=14000,
        runtime=240,
    params:
        decides=training_params,
    script:
        "../scripts/train_stage.py"
