"""Ask a local instruct model for the domains of texts: how likely is each domain's name as its answer.

Nothing is generated, so there is no answer that cannot be read. The names' likelihoods, divided by their sum, are the
label. A name's likelihood is the product over its tokens and the end of the answer.

Several texts are labelled at a time (`option_scores.py`); models for which that gives other labels, which is checked
when the model is opened, label one at a time.

Not covered: a model's bias for a name, whatever the text. Descriptions help (`detect.descriptions`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from versatune_ds.config import LocalLabellerConfig, ModelConfig, TrainConfig
from versatune_ds.data.encoding.templates import choose_template
from versatune_ds.data.encoding.tokenizer import load_tokenizer, render_conversation
from versatune_ds.distributed import World
from versatune_ds.engine.sharded_model import load_model
from versatune_ds.knowledge.base_model import find_base_model
from versatune_ds.knowledge.language_models.option_scores import batch_problem, scores_of_batch, scores_one_by_one
from versatune_ds.knowledge.language_models.questions import LabelStore, Question
from versatune_ds.launch.process_pool import device_of
from versatune_ds.launch.sharded_pool import open_pool
from versatune_ds.log import SHARED
from versatune_ds.model.attention import with_dense_attention
from versatune_ds.progress import with_progress
from versatune_ds.training.worker import set_threads

logger = logging.getLogger(__name__)

_ANSWER = "Answer with the name of one domain and nothing else."

_PROBES = ("The quick brown fox.", "The quick brown fox jumps over the lazy dog, and the dog does not mind.")
"""Texts of different lengths on which labelling several at a time is checked."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelModel:
    """The model in one process, and what it scores: the names of the domains as answers."""

    causal_lm: Any
    names_ids: list[list[int]]
    prompts_per_batch: int
    """1 where reading several together would give other labels."""

    def scores(self, prompts: list[list[int]]) -> np.ndarray:
        """Return the log-probability of every name after every prompt of one batch, float64 [B, K]."""
        scores = scores_of_batch if self.prompts_per_batch > 1 else scores_one_by_one
        return scores(self.causal_lm, prompts=prompts, options=self.names_ids)


def load_label_model(
    settings: LocalLabellerConfig,
    train: TrainConfig,
    world: World,
    *,
    vocab_size: int,
    names_ids: list[list[int]],
    probes: list[list[int]],
    is_sharded: bool,
) -> LabelModel:
    """Load the labelling model, and find out on two prompts whether it reads several together."""
    causal_lm = load_model(
        ModelConfig(name_or_path=settings.name_or_path),
        train=train.model_copy(update={"precision": settings.precision}),
        vocab_size=vocab_size,
        device=device_of(world),
        is_sharded=is_sharded,
        wrap=with_dense_attention,  # its rows are padded, not packed
    )
    problem = batch_problem(causal_lm, prompts=probes, options=names_ids) if settings.texts_per_batch > 1 else None
    if problem is not None:
        logger.warning("detect.hf.texts_per_batch: texts are labelled one at a time: %s", problem, extra=SHARED)
    return LabelModel(
        causal_lm=causal_lm, names_ids=names_ids, prompts_per_batch=1 if problem else settings.texts_per_batch
    )


class LocalLabeller:
    """Label texts with a local model; labels are stored in `folder`, digests of large files in `cache_dir`.

    Args:
        settings: The model, and how many texts it reads at a time.
        question: What it is asked.
        folder: Where labels are stored.
        cache_dir: Where digests of large files are stored.
        train: The recipe's ZeRO-3 settings, for a model that is sharded.
        num_sharded: Processes that the model's weights are divided over; 1 for the complete model in this process.
        pools: Ends these processes when it is closed.

    Raises:
        ValueError: If the model or its tokenizer cannot be loaded, or it has no chat template.
    """

    def __init__(
        self,
        settings: LocalLabellerConfig,
        *,
        question: Question,
        folder: Path,
        cache_dir: Path,
        train: TrainConfig,
        num_sharded: int = 1,
        pools: ExitStack | None = None,
    ) -> None:
        self._settings = settings
        self._question = question
        set_threads()
        try:
            model = ModelConfig(name_or_path=settings.name_or_path)
            self._digest = find_base_model(model, cache_dir=cache_dir).digest
            self._tokenizer = load_tokenizer(settings.name_or_path)
            self._template = choose_template(self._tokenizer)
            load = partial(
                load_label_model,
                settings,
                train,
                vocab_size=len(self._tokenizer),
                names_ids=[self._ids(name) + self._end_ids() for name in question.domain_set],
                probes=[self._prompt_ids(text) for text in _PROBES],
                is_sharded=num_sharded > 1,
            )
            pool = open_pool(load, num_processes=num_sharded, is_sharded=num_sharded > 1)
            self._pool = pool if pools is None else pools.enter_context(pool)
            _, self._num_at_a_time = next(self._pool.map(_prompts_per_batch, [None]))  # loads the model now
        except ValueError as error:
            raise ValueError(f"detect.hf.name_or_path: {str(error).partition(': ')[2]}") from None
        identity = (self._digest, settings.precision, self._prompt(""), str(question.max_characters))
        self._store = LabelStore(folder / "labels-hf.jsonl", domain_set=question.domain_set, identity=identity)

    def label(self, texts: list[str]) -> np.ndarray:
        """Return the labels, float64 [N, K]."""
        missing = sorted(self._store.missing(texts), key=len)  # those of a batch are padded to the longest one
        with_labels = self._labels_of(missing)
        for text, label_K in with_progress(with_labels, num_items=len(missing), what="labelled %s sequences"):
            self._store.add(text, label_K, answer=self._question.domain_set.names[int(label_K.argmax())])
        return self._store.labels(texts)

    def _labels_of(self, texts: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield each text with its label."""
        starts = range(0, len(texts), self._num_at_a_time)
        batches = [tuple(texts[start : start + self._num_at_a_time]) for start in starts]
        prompts = [[self._prompt_ids(text) for text in batch] for batch in batches]
        for (place, _), scores_NK in self._pool.map(_scores, list(enumerate(prompts))):
            yield from zip(batches[place], softmax(scores_NK, axis=1), strict=True)

    def describe(self) -> dict[str, Any]:
        """Return what prior.json records of this labeller."""
        return {
            "name": "hf",
            "model": self._settings.name_or_path,
            "digest": self._digest,
            "precision": self._settings.precision,
        }

    def _prompt(self, text: str) -> str:
        """Return the question as the model's chat template writes it, up to where the answer begins."""
        message = {"role": "user", "content": self._question.about(text, answer=_ANSWER)}
        rendered, _ = render_conversation(
            [message], tokenizer=self._tokenizer, template=self._template, add_generation_prompt=True
        )
        return rendered

    def _prompt_ids(self, text: str) -> list[int]:
        return self._ids(self._prompt(text))

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _end_ids(self) -> list[int]:
        """Return the token that ends an answer, without which "law" would be at least as likely as "law of the sea"."""
        end = self._tokenizer.eos_token_id
        return [] if end is None else [end]


def _prompts_per_batch(model: LabelModel, _: None) -> int:
    return model.prompts_per_batch


def _scores(model: LabelModel, batch: tuple[int, list[list[int]]]) -> np.ndarray:
    """Return the scores of a numbered batch of prompts."""
    return model.scores(batch[1])
