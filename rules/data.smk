# Needs: the config, split lists and task files. Makes: the resolved config and each split with the
# sha256 of its task files, so that a changed task is a changed input of everything that follows.


rule write_config:
    output:
        "<results>/config.resolved.yaml",
    log:
        "<logs>/write_config.log",
    localrule: True
    params:
        config=study.config.model_dump(mode="json"),
    script:
        "../scripts/write_config.py"


rule resolve_split:
    input:
        split=lambda wildcards: str(study.config.tasks.splits[wildcards.split]),
        tasks=lambda wildcards: split_files(study.config, wildcards.split),
    output:
        "<results>/splits/{split}.json",
    log:
        "<logs>/resolve_split/{split}.log",
    localrule: True
    params:
        left_out=study.left_out,
    script:
        "../scripts/resolve_split.py"
