# The whole study, from lists of tasks to a page: data -> demonstrations -> model -> training -> episodes
# -> scores -> report. Which study is decided by the config alone (default: configs/demo.yaml).
from snakemake.utils import min_version

min_version("9.27")

if "study" not in config:

    configfile: "configs/demo.yaml"


include: "rules/common.smk"
include: "rules/tasks.smk"
include: "rules/data.smk"
include: "rules/desktops.smk"
include: "rules/models.smk"
include: "rules/training.smk"
include: "rules/offline.smk"
include: "rules/rollouts.smk"
include: "rules/evaluation.smk"
include: "rules/targets.smk"
include: "rules/report.smk"
include: "rules/validation.smk"


rule all:
    default_target: True
    input:
        "<reports>/index.html",
    localrule: True
