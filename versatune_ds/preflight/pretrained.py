"""Check that settings made for training from random weights are not carried to a pretrained model."""

from __future__ import annotations

from collections.abc import Iterator

from versatune_ds.config.mixture_sections import StartFraction
from versatune_ds.preflight.capacity import estimates_of
from versatune_ds.preflight.subject import Subject
from versatune_ds.training.finding import Finding, warn

_MIN_PARAMETERS = 50e6
"""Smaller models, as in tests and comparisons on a CPU, are trained further at the rates they were made with."""

_MAX_RATE, _USUAL_RATE = 1e-4, "5e-6 to 5e-5"
_MAX_LORA_RATE, _USUAL_LORA_RATE = 1e-3, "5e-5 to 3e-4"
"""Learning rates above which a pretrained model loses what it knows within some hundred steps, and usual ones."""

_MIN_START_FRACTION = 0.3
"""No pretrained model comes down to a smaller share of its first loss on text that it has not seen."""


def check_pretrained(subject: Subject) -> Iterator[Finding]:
    """Warn of a learning rate and of stand-in references that suit random weights alone."""
    config = subject.config
    if config.model.name_or_path is None or estimates_of(subject).size.num_parameters < _MIN_PARAMETERS:
        return
    rate, has_adapters = config.train.learning_rate, config.model.lora is not None
    most, usual = (_MAX_LORA_RATE, _USUAL_LORA_RATE) if has_adapters else (_MAX_RATE, _USUAL_RATE)
    if rate > most:
        what = "adapters of a pretrained model" if has_adapters else "all weights of a pretrained model"
        yield warn("pretrained", "train.learning_rate", f"{rate:g} is high for {what}", f"usual are {usual}")
    reference = config.mixture.reference
    fraction = reference.start_fraction if isinstance(reference, StartFraction) else 1.0
    if config.mixture.rule.needs_references and fraction < _MIN_START_FRACTION:
        yield warn(
            "pretrained",
            "mixture.reference.start_fraction",
            f"{fraction:g} of its first loss is what a model from random weights comes to",
            "measure references (versatune reference), or use 0.85",
        )
