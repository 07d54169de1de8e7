# Needs: a valid config. Makes: nothing; what all rules share: the checked study, its paths, its wildcards.
import os
from pathlib import Path

from arpo_replica.base.environments import find
from arpo_replica.base.errors import UserError, refuse
from arpo_replica.cluster.pools import end
from arpo_replica.cluster.resources import check_jobs, resources_of
from arpo_replica.config.decides import decides
from arpo_replica.config.load import joined_variant, parse_config
from arpo_replica.evaluation.tables import table_files
from arpo_replica.evaluation.targets import TARGETS
from arpo_replica.providers.desktop_image import image_files
from arpo_replica.suites.planned import split_files
from arpo_replica.workflow.console import ending, quieten
from arpo_replica.workflow.job import SNAKEMAKE
from arpo_replica.workflow.study import Study, of_model, of_models
from snakemake.logging import logger

# Scripts end with the Snakemake that runs them; on a cluster that is the one inside the job, which reads this too.
os.environ[SNAKEMAKE] = str(os.getpid())


try:
    # Scripts get the same ``config``.
    config.update(joined_variant(config, workflow.configfiles))
    study = Study(parse_config(config, ", ".join(map(str, workflow.configfiles))))
    if workflow.is_main_process:
        study.check()
        check_jobs(study.config, workflow.resource_settings.overwrite_resources)
        if workflow.output_settings.dryrun:
            for sentence in study.lacks():
                logger.warning(f"A run would refuse to start: {sentence}")
except UserError as error:
    refuse(error)
asked = resources_of(study.config)
page = Path("reports", study.name, "index.html")
shown = workflow.output_settings
if workflow.is_main_process and not shown.dryrun and not shown.verbose:
    quieten(logger, shown.show_failed_logs, page)


onsuccess:
    end(study.config)
    logger.info(ending(page))


onerror:
    end(study.config)


# Of a run alone, not of a dry run, a lint or a graph: these need nothing but the controller's environment.
onstart:
    if lacks := study.lacks():
        refuse(*lacks)


pathvars:
    results=f"results/{study.name}",
    reports=f"reports/{study.name}",
    logs=f"results/{study.name}/logs",
    benchmarks=f"results/{study.name}/benchmarks",
    episodes="episodes/{arm}/seed_{seed}/stage_{stage}",


wildcard_constraints:
    arm="[a-z0-9_]+",
    seed=r"\d+",
    stage="[a-z0-9_]+",
    split="[a-z0-9_]+",
    trial=r"\d+",


def any_of(names):
    """What a wildcard may be; a rule that nothing asks for has one that fits no path of ours."""
    return "|".join(names) or "none"


def target_files(wildcards):
    """Exactly what a table or figure of the paper rests on in this study."""
    try:
        return study.target_files(wildcards.target)
    except UserError as error:
        refuse(error)
