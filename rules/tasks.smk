# Needs: the committed hashes of OSWorld's task files, a git repository or local folder that has them; for
# noisy variants the clean tasks; for selected splits the untrained policy, desktops, vLLM. Makes: the folder of
# OSWorld's task files (one for all studies), the task files and list of each noisy split, and the list of each
# selected split. A study that uses none makes none.


rule fetch_osworld_tasks:
    input:
        manifest=find("data/osworld/manifest.json"),
    output:
        "results/osworld/tasks/manifest.json",
    log:
        "<logs>/fetch_osworld_tasks.log",
    localrule: True
    script:
        "../scripts/fetch_osworld_tasks.py"


rule make_noisy_tasks:
    input:
        list=lambda wildcards: str(
            study.config.tasks.splits[study.config.tasks.noisy[wildcards.split].source]
        ),
        tasks=lambda wildcards: split_files(
            study.config, study.config.tasks.noisy[wildcards.split].source
        ),
    output:
        split="<results>/noisy/{split}.json",
        manifest="<results>/noisy/{split}/manifest.json",
    log:
        "<logs>/make_noisy_tasks/{split}.log",
    wildcard_constraints:
        split=any_of(study.config.tasks.noisy),
    localrule: True
    params:
        decides=decides(study.config, "make_noisy_tasks"),
        left_out=study.left_out,
    script:
        "../scripts/make_noisy_tasks.py"


rule select_tasks:
    input:
        image=ancient(study.desktop_image()),
        manifest="<results>/models/base/seed_0/stage_base/manifest.json",
        source=lambda wildcards: f"<results>/splits/{study.config.tasks.selected[wildcards.split].source}.json",
    output:
        "<results>/selected/{split}.json",
    log:
        "<logs>/select_tasks/{split}.log",
    benchmark:
        "<benchmarks>/select_tasks/{split}.tsv"
    wildcard_constraints:
        split=any_of(study.config.tasks.selected),
    threads: study.config.threads
    resources:
        mem_mb=asked.rollout_memory,
        runtime=asked.longer_minutes,
        cpus_per_task=study.config.threads,
        gres=asked.rollout_gpus,
    params:
        decides=decides(study.config, "select_tasks"),
    script:
        "../scripts/select_tasks.py"
