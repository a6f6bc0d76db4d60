"""Define the detect section of a recipe: how sequences are drawn from the base model, and who says their domain.

The one idea: what changes a drawn sequence (start, temperature, seed, ...) is apart from what changes its label, so
that another labeller reads the same sequences again.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from versatune_ds.config.section import ExpandedText, Section
from versatune_ds.domains import by_domain_name


class SamplingConfig(Section):
    """Set how sequences are drawn from the base model; every key changes which sequences come."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the draws; with the same batch size the same sequences come, however many processes draw them."""
    sequences_per_batch: int = Field(default=64, ge=1)
    """Sequences drawn at a time by one process."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Tokens after which a sequence is cut off; how many were is shown."""
    temperature: float = Field(default=1.0, gt=0)
    """1 draws from the model's own distribution; anything else from another one."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw from the likeliest tokens that together have this probability; 1 leaves none out."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """Above 1, tokens that came before are made less likely; VersaTune's authors used 1.1."""
    prefix: str = ""
    """Text after the beginning token: an instruct model's header of a user turn, else nothing."""


class EndpointConfig(Section):
    """Name an OpenAI-compatible endpoint; its key comes from the environment variable OPENAI_API_KEY alone."""

    url: str | None = None
    """Address of the API up to and with /v1; OpenAI's own by default."""
    model: str = Field(min_length=1)
    """Name of the model that labels."""
    concurrency: int = Field(default=8, ge=1)
    """Requests under way at a time."""
    max_retries: int = Field(default=6, ge=0)
    """Further attempts after a failed one (429, 5xx, no connection), with growing pauses or as Retry-After says."""
    timeout_seconds: float = Field(default=120, gt=0)
    """Time after which one request counts as failed."""

    @field_validator("url")
    @classmethod
    def _holds_no_secret(cls, url: str | None) -> str | None:
        """Refuse an address that may carry a secret: the recipe is copied into run folders, reports and W&B."""
        if url is not None and not re.fullmatch(r"https?://[^@?\s]+", url):
            raise ValueError("expected http(s)://host/v1 without user, password and query; set OPENAI_API_KEY instead")
        return url


class LocalLabellerConfig(Section):
    """Name a local instruct model that labels."""

    name_or_path: ExpandedText = Field(min_length=1)
    """Folder saved by transformers, or a Hub name."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Number format of its weights."""


class DetectConfig(Section):
    """Say how `versatune detect` finds out what the base model knows."""

    num_sequences: int = Field(default=10_000, ge=1)
    """Sequences drawn at most."""
    rounds: int = Field(default=10, ge=1)
    """Rounds into which they are divided; detection ends early when a round changes nothing."""
    tol: float = Field(default=0.005, ge=0)
    """Largest change of a share from one round to the next that counts as none."""
    sampling: SamplingConfig = SamplingConfig()
    labeller: Literal["classifier", "openai", "hf"] = "classifier"
    """Who says a sequence's domain: a classifier fitted on the recipe's own rows, an endpoint, or a local model."""
    rows_per_domain: int = Field(default=2000, ge=20)
    """Training rows of each domain that the classifier is fitted, calibrated and tested on."""
    prior_shift: bool = True
    """Correct the classifier's labels for the shares found (by EM); without it they lean towards equal shares."""
    descriptions: dict[str, str] = Field(default_factory=dict)
    """Domain name to what it holds, for labellers that are language models; the name itself says it otherwise."""
    label_characters: int = Field(default=4000, ge=1)
    """Characters of a sequence that a language model is shown."""
    openai: EndpointConfig | None = None
    """The endpoint of labeller openai."""
    hf: LocalLabellerConfig | None = None
    """The model of labeller hf."""

    @field_validator("descriptions")
    @classmethod
    def _have_names_of_one_form(cls, descriptions: dict[str, str]) -> dict[str, str]:
        """Write domains' names as all of them are written."""
        return by_domain_name(descriptions, what="detect.descriptions")

    @model_validator(mode="after")
    def _has_what_the_labeller_needs(self) -> DetectConfig:
        """Check that the chosen labeller is described and every round has a sequence."""
        if self.labeller != "classifier" and getattr(self, self.labeller) is None:
            key = "model" if self.labeller == "openai" else "name_or_path"
            raise ValueError(
                f"detect.{self.labeller}: labeller {self.labeller!r} needs it; give detect.{self.labeller}.{key}"
            )
        if self.rounds > self.num_sequences:
            raise ValueError(
                f"detect.rounds: {self.rounds} rounds of {self.num_sequences} sequences; give fewer rounds"
            )
        return self
