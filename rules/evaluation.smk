# Needs: indexes of episodes, metrics and manifests of training, the paper's numbers. Makes: one table of
# scores, the summary with intervals, a verdict for each claim of the paper, and the provenance of it all.


rule score_episodes:
    input:
        indexes=study.all_indexes(),
    output:
        "<results>/scores.parquet",
    log:
        "<logs>/score_episodes.log",
    localrule: True
    params:
        decides=study.score_params(),
    script:
        "../scripts/score_episodes.py"


rule summarise_study:
    input:
        scores="<results>/scores.parquet",
        metrics=study.all_metrics(),
        manifests=study.all_manifests(),
    output:
        "<results>/summary.json",
    log:
        "<logs>/summarise_study.log",
    localrule: True
    script:
        "../scripts/summarise_study.py"


rule judge_claims:
    input:
        summary="<results>/summary.json",
        claims="data/paper/claims.yaml",
        published="data/paper/results.yaml",
    output:
        "<results>/claims.json",
    log:
        "<logs>/judge_claims.log",
    localrule: True
    script:
        "../scripts/judge_claims.py"


rule write_provenance:
    input:
        config="<results>/config.resolved.yaml",
        scores="<results>/scores.parquet",
        manifests=study.all_manifests(),
    output:
        "<results>/provenance.json",
    log:
        "<logs>/write_provenance.log",
    localrule: True
    script:
        "../scripts/write_provenance.py"
