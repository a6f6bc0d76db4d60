"""Ask an OpenAI-compatible endpoint for the domains of texts: a hosted model, or vLLM, llama.cpp, Ollama on your own.

An answer is a probability for every domain, as JSON. One that cannot be read is unparsed and counted. One that did not
arrive after all retries is an error that ends the detection, never a label. Answers that arrived are stored, so
starting again asks for the rest.

The key comes from OPENAI_API_KEY, and is written nowhere.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ds.config import EndpointConfig
from versatune_ds.domains import DomainSet
from versatune_ds.json_file import is_finite_number
from versatune_ds.knowledge.questions import LabelStore, Question
from versatune_ds.monitor.progress_lines import with_progress

_KEY_VARIABLE = "OPENAI_API_KEY"
_NO_KEY = "none"
"""Sent if a URL is set but no key: local servers seldom ask for one."""

_ANSWER = (
    "Answer with one JSON object and nothing else: every domain's name with the probability that the text belongs to "
    'it, and "other" with the probability that it belongs to none of them. The probabilities sum to 1.'
)


class EndpointLabeller:
    """Label texts by asking an endpoint; its answers are stored in `folder`.

    Raises:
        ValueError: If the openai package is missing, or OpenAI's own endpoint is asked without a key.
    """

    def __init__(self, endpoint: EndpointConfig, *, question: Question, folder: Path) -> None:
        self._endpoint = endpoint
        self._question = question
        self._client = _client(endpoint)
        asked = question.about("", answer=_ANSWER)
        identity = (endpoint.url or "", endpoint.model, asked, str(question.max_characters))
        self._store = LabelStore(folder / "labels-openai.jsonl", domain_set=question.domain_set, identity=identity)

    def label(self, texts: list[str]) -> np.ndarray:
        """Return the labels, float64 [N, K]; zeros where an answer could not be read.

        Raises:
            RuntimeError: If a request fails for good; the answers so far are stored.
        """
        missing = self._store.missing(texts)
        answers = ask_in_threads(self._ask, missing, num_threads=self._endpoint.concurrency)
        for text, answer in with_progress(answers, num_items=len(missing), what="labelled %s sequences"):
            self._store.add(text, read_answer(answer, self._question.domain_set), answer=answer)
        return self._store.labels(texts)

    def describe(self) -> dict[str, Any]:
        """Return what prior.json records of this labeller."""
        return {"name": "openai", "model": self._endpoint.model, "url": self._endpoint.url}

    def _ask(self, text: str) -> str:
        """Return the answer about one text; the client retries and waits as the server asks."""
        import openai

        content = self._question.about(text, answer=_ANSWER)
        try:
            answer = self._client.chat.completions.create(
                model=self._endpoint.model, messages=[{"role": "user", "content": content}], temperature=0.0
            )
        except openai.OpenAIError as error:
            raise RuntimeError(
                f"detect.openai: {self._endpoint.url or 'the endpoint'} failed "
                f"{1 + self._endpoint.max_retries} times or for good ({_reason(error)}); the answers so far are kept: "
                "start again to resume"
            ) from None
        return (answer.choices[0].message.content or "") if answer.choices else ""


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


def read_answer(answer: str, domain_set: DomainSet) -> np.ndarray:
    """Return the probabilities in an answer, float64 [K]; zeros where it cannot be read.

    Names count in any letter case. What is given to other names ("other" among them) belongs to no domain;
    probabilities that do not sum to 1 are divided by their sum.

    Args:
        answer: Text with one JSON object in it, perhaps with words or a code fence around it.
        domain_set: Order of the result.
    """
    zeros_K = np.zeros(len(domain_set))
    start, end = answer.find("{"), answer.rfind("}")
    try:
        values = json.loads(answer[start : end + 1]) if start >= 0 else None
    except (ValueError, RecursionError):
        return zeros_K
    if not isinstance(values, dict) or not all(is_finite_number(value) and value >= 0 for value in values.values()):
        return zeros_K
    given: dict[str, float] = {}
    for name, value in values.items():
        folded = name.strip().casefold()
        given[folded] = given.get(folded, 0.0) + value
    total = sum(given.values())
    if total <= 0:
        return zeros_K
    return np.array([given.get(name.casefold(), 0.0) / total for name in domain_set])


def _client(endpoint: EndpointConfig) -> Any:
    """Return the client, with the key from the environment."""
    try:
        import openai
    except ImportError:
        raise ValueError("detect.labeller: openai needs the openai package; pip install -e '.[openai]'") from None
    key = os.environ.get(_KEY_VARIABLE)
    if not key and endpoint.url is None:
        raise ValueError(f"detect.openai: set {_KEY_VARIABLE}, or detect.openai.url for a server that needs no key")
    # Without a URL the client would take OPENAI_BASE_URL: then prior.json would not record who labelled.
    return openai.OpenAI(
        api_key=key or _NO_KEY,
        base_url=endpoint.url or "https://api.openai.com/v1",
        max_retries=endpoint.max_retries,
        timeout=endpoint.timeout_seconds,
    )


def _reason(error: Exception) -> str:
    """Return what went wrong in few words; not the server's own, which may contain the key."""
    status = getattr(error, "status_code", None)
    return f"{type(error).__name__}, status {status}" if status else type(error).__name__
