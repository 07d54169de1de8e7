# Needs: indexes of episodes, metrics and manifests of training, the paper's numbers. Makes: one table of
# scores, the summary with intervals, a verdict for each claim of the paper, every table as CSV and JSON, and
# the provenance of it all.


rule score_episodes:
    input:
        indexes=study.all_indexes(),
    output:
        table="<results>/scores.parquet",
        rows="<results>/scores.csv",
    log:
        "<logs>/score_episodes.log",
    localrule: True
    params:
        decides=decides(study.config, "score_episodes"),
    script:
        "../scripts/score_episodes.py"


rule summarise_study:
    input:
        scores="<results>/scores.parquet",
        metrics=of_models(study.stages(), "metrics.jsonl"),
        reports=of_models(study.stages(), "stage_report.json"),
        manifests=study.all_manifests(),
        learning=of_models(study.offline_trainings(), "learning.jsonl"),
        left_out=list(map(str, study.config.tasks.leave_out)),
        lists=study.lists(),
        tasks=study.all_task_files(),
    output:
        "<results>/summary.json",
    log:
        "<logs>/summarise_study.log",
    localrule: True
    params:
        decides=decides(study.config, "summarise_study"),
    script:
        "../scripts/summarise_study.py"


rule compare_claims:
    input:
        summary="<results>/summary.json",
        claims=find("data/paper/claims.yaml"),
        published=find("data/paper/results.yaml"),
        contradictions=find("data/paper/contradictions.yaml"),
        hyperparameters=find("data/paper/hyperparameters.yaml"),
        lists=study.committed_lists(),
    output:
        "<results>/claims.json",
    log:
        "<logs>/compare_claims.log",
    localrule: True
    params:
        decides=decides(study.config, "compare_claims"),
        throughput=study.measured_throughput(),
    script:
        "../scripts/compare_claims.py"


rule write_tables:
    input:
        summary="<results>/summary.json",
        claims="<results>/claims.json",
        scores="<results>/scores.parquet",
    output:
        table_files("<results>/tables"),
    log:
        "<logs>/write_tables.log",
    localrule: True
    script:
        "../scripts/write_tables.py"


rule write_provenance:
    input:
        config="<results>/config.resolved.yaml",
        scores="<results>/scores.parquet",
        manifests=study.all_manifests(),
        splits=study.used_splits(),
        image=ancient(study.desktop_image()),
    output:
        "<results>/provenance.json",
    log:
        "<logs>/write_provenance.log",
    localrule: True
    script:
        "../scripts/write_provenance.py"
