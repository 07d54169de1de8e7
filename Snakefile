# The whole study, from lists of tasks to a page: data -> demonstrations -> model -> training -> episodes
# -> scores -> report. Which study is decided by the config alone (default: configs/demo.yaml).
from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

min_version("9.27")

try:
    from arpo_replica.base.environments import find
    from arpo_replica.workflow.command_line import check_targets
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


# Only in a workflow of its own: as a module it does not know the rules of the others.
if workflow.is_main_process and Path(workflow.basedir, "rules/common.smk").is_file():
    try:
        check_targets({rule.name for rule in workflow.rules})
    except UserError as error:
        refuse(error)
