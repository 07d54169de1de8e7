"""What in a study plays the parts of the paper's tables and figures."""

from __future__ import annotations

from pydantic import Field

from arpo_replica.config.section import Positive, Section


class CurveConfig(Section):
    """One learning curve."""

    arm: str
    """Arm that was trained."""
    stage: str
    """Stage of its training."""


class TargetsConfig(Section):
    """What in this study plays the parts of the paper's tables and figures (`snakemake table1` and so on)."""

    benchmark: str | None = None
    """Split of Table 1 and figure 6 (the paper: OSWorld's 369 tasks)."""
    selected: str | None = None
    """Split of the README's table and figure 1b (the paper: the 128 tasks)."""
    in_domain: str | None = None
    """Split of figure 4 that is trained on (the paper: 32 of the 128)."""
    out_of_domain: str | None = None
    """Split of figure 4 that is not trained on (the paper: the other 96)."""
    selected_curve: CurveConfig | None = None
    """Training of figure 5 on selected tasks (the paper: GRPO on the 128)."""
    full_curve: CurveConfig | None = None
    """Training of figure 5 on all tasks (the paper: GRPO on the full set)."""
    environments: list[Positive] = Field(default_factory=list)
    """Numbers of desktops at once that figure 7 measures (the paper: 8, 32, 64, 128, 256)."""

    def splits(self) -> list[str]:
        """The splits named here, each once."""
        named = (self.benchmark, self.selected, self.in_domain, self.out_of_domain)
        return list(dict.fromkeys(split for split in named if split))
