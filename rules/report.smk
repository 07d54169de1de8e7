# Needs: scores, summary, claims, provenance, episodes and the templates. Makes: one HTML file, the page that
# the study is for.


rule render_report:
    input:
        scores="<results>/scores.parquet",
        summary="<results>/summary.json",
        claims="<results>/claims.json",
        provenance="<results>/provenance.json",
        deviations="data/paper/deviations.yaml",
        templates=study.report_templates(),
    output:
        report(
            "<reports>/index.html",
            category="Report",
        ),
    log:
        "<logs>/render_report.log",
    localrule: True
    script:
        "../scripts/render_report.py"
