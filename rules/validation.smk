# Needs: desktops, the task files of a split, the committed scripts and known issues. Makes: what each task
# scores for no action, for FAIL and for its script, and the episodes. No part of a study: ask for the file.


rule validate_tasks:
    input:
        image=ancient(study.desktop_image()),
        split="<results>/splits/{split}.json",
        oracles=sorted(map(str, find("data/oracles/osworld").glob("*/*.yaml"))),
        known=find("data/osworld/known_issues.yaml"),
    output:
        "<results>/validation/{split}.json",
    log:
        "<logs>/validate_tasks/{split}.log",
    benchmark:
        "<benchmarks>/validate_tasks/{split}.tsv"
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        decides=decides(study.config, "validate_tasks"),
    script:
        "../scripts/validate_tasks.py"
