# Needs: the episodes, metrics or timings that a table or figure of the paper rests on, and no more. Makes: that
# table or figure as this study has it, as CSV, JSON, SVG and PNG: `snakemake table1`, `fig1b`, `fig3` and so on.


rule measure_throughput:
    input:
        manifest="<results>/models/base/seed_0/stage_base/manifest.json",
        split=f"<results>/splits/{study.config.last_split}.json",
    output:
        "<results>/throughput.json",
    log:
        "<logs>/measure_throughput.log",
    benchmark:
        "<benchmarks>/measure_throughput.tsv"
    threads: study.config.threads
    resources:
        mem_mb=asked.rollout_memory,
        runtime=asked.longer_minutes,
        cpus_per_task=study.config.threads,
        gres=asked.rollout_gpus,
    params:
        decides=decides(study.config, "measure_throughput"),
    script:
        "../scripts/measure_throughput.py"


rule make_target:
    input:
        unpack(target_files),
        claims=find("data/paper/claims.yaml"),
        published=find("data/paper/results.yaml"),
        contradictions=find("data/paper/contradictions.yaml"),
        hyperparameters=find("data/paper/hyperparameters.yaml"),
        lists=study.committed_lists(),
    output:
        multiext("<results>/targets/{target}/{target}", ".csv", ".json", ".svg", ".png"),
    log:
        "<logs>/make_target/{target}.log",
    wildcard_constraints:
        target=any_of(TARGETS),
    localrule: True
    params:
        decides=decides(study.config, "make_target"),
    script:
        "../scripts/make_target.py"


for target in TARGETS:

    rule:
        name:
            target
        input:
            f"<results>/targets/{target}/{target}.csv",
        localrule: True
