# Needs: scores, summary, claims, tables, provenance, episodes and the templates. Makes: one HTML file, the page
# that the study is for; on request (snakemake publish) a folder and a zip with all that is behind it.


rule render_report:
    input:
        scores="<results>/scores.parquet",
        summary="<results>/summary.json",
        claims="<results>/claims.json",
        tables=table_files("<results>/tables"),
        provenance="<results>/provenance.json",
        deviations=find("data/paper/deviations.yaml"),
        hyperparameters=find("data/paper/hyperparameters.yaml"),
        templates=study.report_templates(),
    output:
        report(
            "<reports>/index.html",
            category="Report",
        ),
    log:
        "<logs>/render_report.log",
    localrule: True
    params:
        decides=decides(study.config, "render_report"),
        episodes=f"results/{study.name}/episodes",
        benchmarks=f"results/{study.name}/benchmarks",
    script:
        "../scripts/render_report.py"


rule publish_report:
    input:
        page="<reports>/index.html",
        scores="<results>/scores.parquet",
        summary="<results>/summary.json",
        claims="<results>/claims.json",
        provenance="<results>/provenance.json",
        config="<results>/config.resolved.yaml",
        tables=table_files("<results>/tables"),
        rows="<results>/scores.csv",
        indexes=study.all_indexes(),
        training=[
            *study.all_manifests(),
            *of_models(study.stages(), "metrics.jsonl"),
            *of_models(study.stages(), "stage_report.json"),
            *of_models(study.offline_trainings(), "learning.jsonl"),
        ],
        taught=study.offline_indexes() if study.config.offline_arms else [],
    output:
        folder=directory(f"<reports>/arpo_{study.name}"),
        archive=f"<reports>/arpo_{study.name}.zip",
    log:
        "<logs>/publish_report.log",
    localrule: True
    params:
        decides=decides(study.config, "publish_report"),
        results=lambda wildcards, input: str(Path(input.summary).parent),
        screenshots=f"reports/{study.name}/screenshots",
    script:
        "../scripts/publish_report.py"


rule publish:
    input:
        rules.publish_report.output,
    localrule: True
