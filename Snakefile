# The whole study, from lists of tasks to a page: data -> demonstrations -> model -> training -> episodes
# -> scores -> report. Which study is decided by the config alone (default: configs/demo.yaml).
from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

min_version("9.27")

try:
    from arpo_replica.environments import find
except ModuleNotFoundError:
    raise WorkflowError(
        "This Python lacks the workflow's package; run 'make controller' in a checkout of the workflow and call "
        "its envs/controller/.venv/bin/snakemake."
    ) from None

if "study" not in config:

    configfile: str(find("configs/demo.yaml"))


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
