# Needs: a desktop for the demonstrations, envs/cpu for the weights; or a description in data/models and the hub.
# Makes: the demonstrations of the scripted expert and the nano policy trained on them, or a model of data/models;
# and the manifests of the policy that all arms start from and of arms whose weights are given. `of` is empty for
# the former and `_{arm}` for the latter.


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
        decides=decides(study.config, "record_demonstrations"),
    script:
        "../scripts/record_demonstrations.py"


rule build_nano_model:
    input:
        demonstrations="<results>/nano/demonstrations/episodes.jsonl",
    output:
        "<results>/nano/model{of}/manifest.json",
    log:
        "<logs>/build_nano_model{of}.log",
    benchmark:
        "<benchmarks>/build_nano_model{of}.tsv"
    wildcard_constraints:
        of=study.of_given,
    threads: study.config.threads
    resources:
        mem_mb=6000,
        runtime=asked.longer_minutes,
        cpus_per_task=study.config.threads,
    params:
        decides=decides(study.config, "build_nano_model"),
    script:
        "../scripts/build_nano_model.py"


rule fetch_model:
    output:
        "<results>/model{of}/manifest.json",
    log:
        "<logs>/fetch_model{of}.log",
    wildcard_constraints:
        of=study.of_given,
    localrule: True
    threads: study.config.threads
    resources:
        mem_mb=24000,
        runtime=240,
    params:
        decides=decides(study.config, "fetch_model"),
    script:
        "../scripts/fetch_model.py"


rule register_model:
    input:
        source=lambda wildcards: study.source_of(wildcards.arm),
        # Other arms' weights must be of the base policy's kind.
        beside=lambda wildcards: (
            [] if wildcards.arm == "base" else [of_model("base", 0, "base")]
        ),
    output:
        "<results>/models/{arm}/seed_0/stage_{stage}/manifest.json",
    log:
        "<logs>/register_model/{arm}.{stage}.log",
    wildcard_constraints:
        arm=any_of(study.config.given_arms),
        stage="base|released",
    localrule: True
    params:
        decides=decides(study.config, "register_model"),
    script:
        "../scripts/register_model.py"
