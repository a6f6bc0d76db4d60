"""What a labeller is, and how the one that a recipe asks for is made.

A labeller turns texts into probabilities over the domains and describes itself. Everything else about detection is the
same for all labellers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from versatune_ds.config import RunConfig
from versatune_ds.domains import DomainSet, nearest_name
from versatune_ds.knowledge.label_texts import read_divided_texts
from versatune_ds.knowledge.questions import Question


class Labeller(Protocol):
    """Label texts; [N] texts give float64 [N, K], rows summing to 1 or to less by what is unparsed."""

    def label(self, texts: list[str]) -> np.ndarray:
        """Return the probability of every domain for every text."""

    def describe(self) -> dict[str, Any]:
        """Return what prior.json records of this labeller."""


def make_labeller(
    config: RunConfig, *, tokenizer: Any, domain_set: DomainSet, cache_dir: Path, folder: Path
) -> Labeller:
    """Return a recipe's labeller, fitted or loaded.

    Answers are stored in `folder`; the built-in corpus is in `cache_dir`. The tokenizer is the base model's.

    Raises:
        ValueError: If a domain has too few rows, a model cannot be loaded, or a description is of no domain.
    """
    settings = config.detect
    for name in settings.descriptions:
        if name not in domain_set.names:
            raise ValueError(f"detect.descriptions: unknown domain {name!r}; {nearest_name(name, domain_set.names)}")
    if settings.labeller == "classifier":
        from versatune_ds.knowledge.label_classifier import ClassifierLabeller  # scikit-learn takes a second to import

        texts = read_divided_texts(
            config.data,
            tokenizer=tokenizer,
            max_tokens=config.detect.sampling.max_new_tokens,
            rows_per_domain=config.detect.rows_per_domain,
            cache_dir=cache_dir,
        )
        return ClassifierLabeller(texts, num_domains=len(domain_set))
    question = Question(
        domain_set=domain_set, descriptions=settings.descriptions, max_characters=settings.label_characters
    )
    if settings.labeller == "openai":
        from versatune_ds.knowledge.label_openai import EndpointLabeller

        assert settings.openai is not None, "the config checks it"
        return EndpointLabeller(settings.openai, question=question, folder=folder)
    from versatune_ds.knowledge.label_hf import LocalLabeller

    assert settings.hf is not None, "the config checks it"
    return LocalLabeller(settings.hf, question=question, folder=folder, cache_dir=cache_dir)
