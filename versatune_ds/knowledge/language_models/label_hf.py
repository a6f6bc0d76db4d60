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
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from versatune_ds.config import LocalLabellerConfig, ModelConfig
from versatune_ds.data.encoding.templates import choose_template
from versatune_ds.data.encoding.tokenizer import load_tokenizer, render_conversation
from versatune_ds.distributed import World
from versatune_ds.knowledge.base_model import find_base_model
from versatune_ds.knowledge.language_models.option_scores import batch_problem, scores_of_batch, scores_one_by_one
from versatune_ds.knowledge.language_models.questions import LabelStore, Question
from versatune_ds.launch.process_pool import device_of
from versatune_ds.model.attention import use_dense_attention
from versatune_ds.model.build import build_causal_lm
from versatune_ds.progress import with_progress
from versatune_ds.training.worker import set_threads

logger = logging.getLogger(__name__)

_ANSWER = "Answer with the name of one domain and nothing else."

_PROBES = ("The quick brown fox.", "The quick brown fox jumps over the lazy dog, and the dog does not mind.")
"""Texts of different lengths on which labelling several at a time is checked."""


class LocalLabeller:
    """Label texts with a local model; labels are stored in `folder`, digests of large files in `cache_dir`.

    Raises:
        ValueError: If the model or its tokenizer cannot be loaded, or it has no chat template.
    """

    def __init__(self, settings: LocalLabellerConfig, *, question: Question, folder: Path, cache_dir: Path) -> None:
        self._settings = settings
        self._question = question
        set_threads()
        try:
            model = ModelConfig(name_or_path=settings.name_or_path)
            self._digest = find_base_model(model, cache_dir=cache_dir).digest
            self._tokenizer = load_tokenizer(settings.name_or_path)
            causal_lm = build_causal_lm(
                model, precision=settings.precision, vocab_size=len(self._tokenizer), special_ids={}
            )
        except ValueError as error:
            raise ValueError(f"detect.hf.name_or_path: {str(error).partition(': ')[2]}") from None
        use_dense_attention(causal_lm)  # its rows are padded, not packed
        self._causal_lm = causal_lm.to(device_of(World())).eval()
        self._template = choose_template(self._tokenizer)
        self._names_ids = [self._ids(name) + self._end_ids() for name in question.domain_set]
        identity = (self._digest, settings.precision, self._prompt(""), str(question.max_characters))
        self._store = LabelStore(folder / "labels-hf.jsonl", domain_set=question.domain_set, identity=identity)
        prompts = [self._prompt_ids(text) for text in _PROBES]
        self._num_at_a_time = settings.texts_per_batch
        problem = batch_problem(self._causal_lm, prompts=prompts, options=self._names_ids)
        if self._num_at_a_time > 1 and problem:
            self._num_at_a_time = 1
            logger.warning("detect.hf.texts_per_batch: texts are labelled one at a time: %s", problem)

    def label(self, texts: list[str]) -> np.ndarray:
        """Return the labels, float64 [N, K]."""
        missing = sorted(self._store.missing(texts), key=len)  # those of a batch are padded to the longest one
        with_labels = self._labels_of(missing)
        for text, label_K in with_progress(with_labels, num_items=len(missing), what="labelled %s sequences"):
            self._store.add(text, label_K, answer=self._question.domain_set.names[int(label_K.argmax())])
        return self._store.labels(texts)

    def _labels_of(self, texts: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield each text with its label."""
        for start in range(0, len(texts), self._num_at_a_time):
            batch = texts[start : start + self._num_at_a_time]
            prompts = [self._prompt_ids(text) for text in batch]
            scores = scores_of_batch if self._num_at_a_time > 1 else scores_one_by_one
            scores_NK = scores(self._causal_lm, prompts=prompts, options=self._names_ids)
            yield from zip(batch, softmax(scores_NK, axis=1), strict=True)

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
