"""Typed configuration of a study."""

from arpo_replica.config.load import load_config, parse_config
from arpo_replica.config.models import StudyConfig

__all__ = ["StudyConfig", "load_config", "parse_config"]
