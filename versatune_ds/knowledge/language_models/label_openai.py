"""Ask an OpenAI-compatible endpoint for the domains of texts: a hosted model, or vLLM, llama.cpp, Ollama on your own.

Where the server gives log-probabilities, a text costs one token: the probabilities of the option letters
(`option_letters.py`). Elsewhere an answer is words, best a probability for every domain as JSON (`label_answers.py`).
One that cannot be read is unparsed and counted. One that did not arrive after all retries is an error that ends the
detection, never a label. Answers that arrived are stored, so starting again asks for the rest.

The key comes from OPENAI_API_KEY, and is written nowhere.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ds.config import EndpointConfig
from versatune_ds.knowledge.language_models.endpoint import (
    LETTERS_FORM,
    PROBE_RETRIES,
    TEXT_ANSWER,
    TEXT_FORM,
    EndpointRequests,
    choose_form,
    client_of,
    reason_of,
)
from versatune_ds.knowledge.language_models.label_answers import read_answer
from versatune_ds.knowledge.language_models.questions import LabelStore, Question
from versatune_ds.progress import with_progress

logger = logging.getLogger(__name__)


def open_endpoint(endpoint: EndpointConfig, *, question: Question, folder: Path) -> EndpointLabeller:
    """Return the labeller of an endpoint that answers, having asked it one question; log how it answers.

    Raises:
        ValueError: If the openai package is missing, there is no key, or the endpoint does not answer.
    """
    client = client_of(endpoint)
    probed = EndpointRequests(
        client.with_options(max_retries=min(PROBE_RETRIES, endpoint.max_retries)), endpoint=endpoint, question=question
    )
    form, reason = choose_form(probed)
    logger.info("detect.openai.answers: %s: %s; %s", endpoint.answers, form, reason)
    return EndpointLabeller(
        EndpointRequests(client, endpoint=endpoint, question=question), question=question, form=form, folder=folder
    )


class EndpointLabeller:
    """Label texts by asking an endpoint; its answers are stored in `folder`."""

    def __init__(self, requests: EndpointRequests, *, question: Question, form: str, folder: Path) -> None:
        self._requests, self._endpoint = requests, requests.endpoint
        self._question = question
        self._form = form
        asked = question.about("", answer=TEXT_ANSWER) if form == TEXT_FORM else question.with_letters("")[0]
        identity = [self._endpoint.url or "", self._endpoint.model, asked, str(question.max_characters)]
        if self._endpoint.max_answer_tokens is not None and form == TEXT_FORM:
            identity.append(str(self._endpoint.max_answer_tokens))
        domain_set = question.domain_set
        self._store = LabelStore(
            folder / "labels-openai.jsonl",
            domain_set=domain_set,
            identity=identity,
            read=(lambda answer: read_answer(answer, domain_set)) if form == TEXT_FORM else None,
        )

    def label(self, texts: list[str]) -> np.ndarray:
        """Return the labels, float64 [N, K]; zeros where an answer could not be read.

        Raises:
            RuntimeError: If a request fails for good; the answers so far are stored.
        """
        missing = self._store.missing(texts)
        answers = ask_in_threads(self._ask, missing, num_threads=self._endpoint.concurrency)
        for text, answer in with_progress(answers, num_items=len(missing), what="labelled %s sequences"):
            self._store.add(text, self._read(text, answer), answer=answer)
        return self._store.labels(texts)

    def describe(self) -> dict[str, Any]:
        """Return what prior.json records of this labeller."""
        return {"name": "openai", "model": self._endpoint.model, "url": self._endpoint.url, "answers": self._form}

    def _ask(self, text: str) -> str:
        """Return the answer about one text; log-probabilities as JSON."""
        import openai

        try:
            if self._form == LETTERS_FORM:
                return json.dumps(self._requests.letters(text))
            return self._requests.text(text, max_tokens=self._endpoint.max_answer_tokens)
        except openai.OpenAIError as error:
            raise RuntimeError(
                f"detect.openai: {self._endpoint.url or 'the endpoint'} failed "
                f"{1 + self._endpoint.max_retries} times or for good ({reason_of(error)}); the answers so far are "
                "kept: start again to resume"
            ) from None

    def _read(self, text: str, answer: str) -> np.ndarray:
        """Return the label in an answer, float64 [K]."""
        if self._form == TEXT_FORM:
            return read_answer(answer, self._question.domain_set)
        _, options = self._question.with_letters(text)
        return options.label(json.loads(answer))


def ask_in_threads(
    ask: Callable[[str], str], questions: Sequence[str], *, num_threads: int
) -> Iterator[tuple[str, str]]:
    """Ask many questions at once; yield (question, answer) in the order in which answers come.

    When the caller stops iterating, no further question is asked. The threads are daemons, which end with the program:
    those of `concurrent.futures` are waited for at its end, and a request to a slow endpoint may take minutes, with its
    retries even more.

    Raises:
        Exception: What `ask` raised first.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    answered: queue.SimpleQueue[tuple[str, str | BaseException]] = queue.SimpleQueue()
    is_over = threading.Event()
    for question in questions:
        waiting.put(question)

    def work() -> None:
        while not is_over.is_set():
            try:
                question = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                answered.put((question, ask(question)))
            except BaseException as error:
                answered.put((question, error))

    for _ in range(min(num_threads, len(questions))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in questions:
            question, answer = answered.get()
            if isinstance(answer, BaseException):
                raise answer
            yield question, answer
    finally:
        is_over.set()
