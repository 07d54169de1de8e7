# Needs: a desktop for the demonstrations, envs/cpu for the weights; or a description in data/models and the hub.
# Makes: the demonstrations of the scripted expert and the nano policy trained on them, or a model of data/models;
# and the manifest of the policy that all arms start from.


rule record_demonstrations:
    input:
        ancient(study.desktop_image()),
    output:
        "<results>/nano/demonstrations/episodes.jsonl",
    log:
        "<logs>/record_demonstrations.log",
    benchmark:
        "<benchmarks>/record_demonstrations.tsv"
    threads: study.config.threads
    resources:
        mem_mb=6000,
        runtime=asked.longer_minutes,
        cpus_per_task=study.config.threads,
    params:
        decides=study.decides("record_demonstrations"),
    script:
        "../scripts/record_demonstrations.py"


rule build_nano_model:
    input:
        demonstrations="<results>/nano/demonstrations/episodes.jsonl",
    output:
        "<results>/nano/model/manifest.json",
    log:
        "<logs>/build_nano_model.log",
    benchmark:
        "<benchmarks>/build_nano_model.tsv"
    threads: study.config.threads
    resources:
        mem_mb=6000,
        runtime=asked.longer_minutes,
        cpus_per_task=study.config.threads,
    params:
        decides=study.decides("build_nano_model"),
    script:
        "../scripts/build_nano_model.py"


rule fetch_model:
    output:
        "<results>/model/manifest.json",
    log:
        "<logs>/fetch_model.log",
    localrule: True
    threads: study.config.threads
    resources:
        mem_mb=24000,
        runtime=240,
    params:
        decides=study.decides("fetch_model"),
    script:
        "../scripts/fetch_model.py"


rule register_base_model:
    input:
        study.base_source,
    output:
        "<results>/models/base/seed_0/stage_base/manifest.json",
    log:
        "<logs>/register_base_model.log",
    localrule: True
    params:
        decides=study.decides("register_base_model"),
    script:
        "../scripts/register_base_model.py"
