# Needs: the committed hashes of OSWorld's task files, a git repository or local folder that has them; for
# noisy variants the clean tasks. Makes: the folder of OSWorld's task files (one for all studies), and the
# task files and list of each noisy split. A study that uses neither makes neither.


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
        list=study.clean_list,
        tasks=study.clean_tasks,
    output:
        split="<results>/noisy/{split}.json",
        manifest="<results>/noisy/{split}/manifest.json",
    log:
        "<logs>/make_noisy_tasks/{split}.log",
    wildcard_constraints:
        split="|".join(study.config.tasks.noisy) or "none",
    localrule: True
    params:
        decides=decides("make_noisy_tasks"),
        left_out=study.left_out,
    script:
        "../scripts/make_noisy_tasks.py"
