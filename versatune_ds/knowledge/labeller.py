"""Define what a labeller is, and make the one that a recipe chooses.

A labeller turns texts into probabilities over the domains and describes itself. Everything else about detection is the
same for all labellers.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from versatune_ds.config import DetectConfig, RunConfig
from versatune_ds.domains import DomainSet
from versatune_ds.knowledge.domain_descriptions import (
    check_described,
    describe_domains,
    described,
    recipe_descriptions,
)
from versatune_ds.knowledge.label_texts import DividedTexts, joined_texts, read_divided_texts
from versatune_ds.knowledge.language_models.questions import Question
from versatune_ds.knowledge.reliability.source_error import TestedLabeller
from versatune_ds.knowledge.reliability.text_screen import ScreenedLabeller, fit_text_screen
from versatune_ds.knowledge.text_encoder import NoEncoderError, TextEncoder, find_encoder

logger = logging.getLogger(__name__)

FITTED_LABELLERS = ("embedding", "classifier")
"""Labellers fitted on the recipe's rows with equal shares, so `detect.prior_shift` applies to their labels."""


class Labeller(Protocol):
    """Label texts; [N] texts give float64 [N, K], rows summing to 1 or to less by what is unparsed."""

    def label(self, texts: list[str]) -> np.ndarray:
        """Return the probability of every domain for every text."""

    def describe(self) -> dict[str, Any]:
        """Return what prior.json records of this labeller."""


def make_labeller(
    config: RunConfig,
    *,
    tokenizer: Any,
    domain_set: DomainSet,
    cache_dir: Path,
    folder: Path,
    num_sharded: int = 1,
    pools: ExitStack | None = None,
) -> Labeller:
    """Return a recipe's labeller, fitted or loaded.

    Answers are stored in `folder`; the built-in corpus is in `cache_dir`. The tokenizer is the base model's. The
    weights of a local language model are divided over `num_sharded` processes, which end when `pools` is closed.

    Raises:
        ValueError: If a domain has too few rows, a model cannot be loaded, an endpoint does not answer, or a
            description is of no domain.
    """
    config = with_chosen_labeller(config)
    settings = config.detect
    descriptions = recipe_descriptions(config)
    check_described(descriptions, domain_set)
    if settings.labeller in FITTED_LABELLERS:
        texts = read_divided_texts(
            config.data,
            tokenizer=tokenizer,
            max_tokens=config.detect.sampling.max_new_tokens,
            rows_per_domain=config.detect.rows_per_domain,
            cache_dir=cache_dir,
        )
        labeller = _fitted(config, texts, descriptions=descriptions, domain_set=domain_set, cache_dir=cache_dir)
        return ScreenedLabeller(labeller, fit_text_screen(joined_texts(texts)))
    question = Question(domain_set=domain_set, descriptions=descriptions, max_characters=settings.label_characters)
    if settings.labeller == "openai":
        from versatune_ds.knowledge.language_models.label_openai import open_endpoint

        assert settings.openai is not None, "the config checks it"
        return open_endpoint(settings.openai, question=question, folder=folder)
    from versatune_ds.knowledge.language_models.label_hf import LocalLabeller

    assert settings.hf is not None, "the config checks it"
    return LocalLabeller(
        settings.hf,
        question=question,
        folder=folder,
        cache_dir=cache_dir,
        train=config.train,
        num_sharded=num_sharded,
        pools=pools,
    )


def _fitted(
    config: RunConfig, texts: DividedTexts, *, descriptions: dict[str, str], domain_set: DomainSet, cache_dir: Path
) -> TestedLabeller:
    """Return a labeller fitted on the recipe's rows."""
    if config.detect.labeller == "classifier":
        from versatune_ds.knowledge.label_classifier import ClassifierLabeller  # scikit-learn takes a second to import

        return ClassifierLabeller(texts)
    from versatune_ds.knowledge.label_embedding import EmbeddingLabeller

    found = describe_domains(descriptions, texts.fit, domain_set=domain_set)
    logger.info("what the domains are compared with, and who wrote it:\n%s", described(found, domain_set))
    encoder = TextEncoder(find_encoder(config.detect.embedding), cache_dir=cache_dir)
    return EmbeddingLabeller(texts, encoder=encoder, descriptions=found, domain_set=domain_set)


def with_chosen_labeller(config: RunConfig) -> RunConfig:
    """Return the recipe with `embedding` or `classifier` in place of `auto`, and log which and why.

    With `detect.method=likelihood` nothing is labelled, and nothing is chosen.
    """
    if config.detect.labeller != "auto" or config.detect.method == "likelihood":
        return config
    name, reason = fitted_labeller(config.detect)
    logger.info("detect.labeller: auto: %s; %s", name, reason)
    return config.model_copy(update={"detect": config.detect.model_copy(update={"labeller": name})})


def fitted_labeller(settings: DetectConfig) -> tuple[str, str]:
    """Return `embedding` or `classifier`, what this machine has, and why.

    Raises:
        ValueError: If the recipe names an encoder that cannot be used.
    """
    try:
        return "embedding", f"the encoder {find_encoder(settings.embedding).name} is on this machine"
    except NoEncoderError as error:
        if settings.embedding.name_or_path is not None:
            raise  # the recipe asks for it by name
        return "classifier", error.reason
