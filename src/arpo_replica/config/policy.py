"""Keys of ``policy``, and the presets that ``policy.recipe`` names."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from arpo_replica.base.tables import table_of
from arpo_replica.config.section import COMMIT, Positive, Section, Url, VariableName

SERVED = "served"
"""``policy.model`` of a policy whose weights no machine of ours has."""


class PolicyConfig(Section):
    """How the policy sees the screen and how it is asked."""

    model: Literal["nano"] | str = "nano"
    """`nano` (built here), the name of a file in `data/models` (fetched from its hub, or its shape with
    random weights), a local folder in Hugging Face format, or `served`: `endpoint` alone has the weights, and
    only the arm `base` can run."""
    recipe: Literal["uitars_15", "uitars_dpo"] | None = None
    """Preset for the keys below that a config leaves out. `uitars_15`: UI-TARS-1.5 and ARPO's models;
    `uitars_dpo`: UI-TARS 2B-SFT, 7B-DPO, 72B-DPO. Values: docs/policy.md."""
    endpoint: Url | None = None
    """URL of an OpenAI-compatible server that already serves the base model; none is started then."""
    served_model: str | None = None
    """The base model's name on `endpoint`; without it the first one that the server lists."""
    api_key_variable: VariableName = "ARPO_API_KEY"
    """Environment variable that holds the key of `endpoint`. The key itself never goes into a config."""
    prompt: Literal["uitars", "uitars_box", "arpo"] = "uitars"
    """`uitars`: COMPUTER_USE_DOUBAO of the package `ui-tars`; `uitars_box`: OSWorld's for UI-TARS;
    `arpo`: the released code's. The latter two write points as `<|box_start|>(x,y)<|box_end|>`."""
    language: str = "English"
    """Language of the policy's thoughts, as the prompt asks for it."""
    coordinates: Literal["absolute", "relative_1000"] = "absolute"
    """`absolute`: pixels of the resized image (UI-TARS-1.5); `relative_1000`: 0-1000 (UI-TARS)."""
    min_pixels: Positive = 100 * 28 * 28
    """Smallest image the policy sees; smaller screenshots are enlarged."""
    max_pixels: Positive = 2_116_800
    """Largest image the policy sees; larger screenshots are reduced (ARPO's scripts: 2,116,800)."""
    max_images: Positive = 15
    """Screenshots kept in the history, the newest ones."""
    max_turns: Positive | None = None
    """Replies kept in the history, the newest ones; without it all, as OSWorld's runners keep them."""
    actions_per_reply: Literal["first", "all"] = "first"
    """Which actions of a reply run: `first`, or `all` as in ARPO's release and OSWorld's agents. Each that
    runs is a step of `max_steps`; `finished`, `wait` and `call_user` stand for their whole reply."""
    max_steps: Positive = 15
    """Steps of an episode (ARPO §4.1: 15)."""
    max_new_tokens: Positive = 256
    """Longest reply, in tokens."""
    max_model_len: Positive = 65_536
    """Longest conversation, in tokens (ARPO: 64K)."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_recipe(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or not isinstance(raw.get("recipe"), str):
            return raw
        return {**RECIPES.get(raw["recipe"], {}), **raw}

    @model_validator(mode="after")
    def _is_somewhere(self) -> Self:
        if self.min_pixels > self.max_pixels:
            raise ValueError(
                f"policy.min_pixels ({self.min_pixels}) exceeds policy.max_pixels ({self.max_pixels})"
            )
        if self.model == SERVED and (self.endpoint is None or self.served_model is None):
            raise ValueError(
                "policy.model is 'served', which needs policy.endpoint and policy.served_model: results name "
                "them"
            )
        return self


class WeightsConfig(Section):
    """Weights of an arm that nothing here trains: the arm is evaluated, compared and judged as released.

    `weights: X` is short for `{model: X}`. Such an arm has no other keys; one called `arpo_released` stands
    for the paper's `arpo` in claims and targets where the study trains no `arpo`.
    """

    model: str = SERVED
    """As `policy.model`: a name in `data/models`, a folder, `nano`; or `served`: only `endpoint` has them."""
    revision: str | None = Field(default=None, pattern=COMMIT)
    """As `model.revision`."""
    endpoint: Url | None = None
    """As `policy.endpoint`."""
    served_model: str | None = None
    """As `policy.served_model`."""
    epochs: Positive | None = None
    """For the model `nano`: another nano policy, of the same demonstrations, with so many `nano.epochs`."""

    @model_validator(mode="before")
    @classmethod
    def _from_short_form(cls, raw: Any) -> Any:
        return {"model": raw} if isinstance(raw, str) else raw

    @model_validator(mode="after")
    def _is_somewhere(self) -> Self:
        if self.model == SERVED and (self.endpoint is None or self.served_model is None):
            raise ValueError(
                "give weights.model, or both weights.endpoint and weights.served_model: results name them"
            )
        if (self.epochs is None) == (self.model == "nano"):
            raise ValueError(
                "weights.epochs belongs to the model 'nano', which needs it to be another policy"
            )
        return self


RECIPES: dict[str, dict[str, Any]] = table_of(__file__)
"""``policy.recipe`` -> what it sets."""
