"""Ask an OpenAI-compatible endpoint about a text, in letters or in words, and find out which of them it can answer."""

from __future__ import annotations

import os
from typing import Any

from versatune_ds.config import EndpointConfig
from versatune_ds.knowledge.language_models.option_letters import LEAST_MASS, LETTERS, letter_mass
from versatune_ds.knowledge.language_models.questions import Question

_KEY_VARIABLE = "OPENAI_API_KEY"
_NO_KEY = "none"
"""Sent if a URL is set but no key: local servers seldom ask for one."""

TEXT_ANSWER = (
    "Answer with one JSON object and nothing else: every domain's name with the probability that the text belongs to "
    'it, and "other" with the probability that it belongs to none of them. The probabilities sum to 1.'
)

_PROBE = "The quick brown fox jumps over the lazy dog."
"""What is asked about before anything is drawn."""

PROBE_RETRIES = 2
"""Further attempts of that question: a server that is not there should be reported in seconds."""

LETTERS_FORM, TEXT_FORM = "letters", "text"
LogProbabilities = list[tuple[str, float]]


class EndpointRequests:
    """The questions that an endpoint is asked, in either form. The client retries and waits as the server asks."""

    def __init__(self, client: Any, *, endpoint: EndpointConfig, question: Question) -> None:
        self.endpoint, self.question = endpoint, question
        self._client = client

    def letters(self, text: str) -> LogProbabilities:
        """Return (token, log-probability) of the likeliest first tokens of the answer; empty if the server has none."""
        content, _ = self.question.with_letters(text)
        answer = self._create(content, max_tokens=1, logprobs=True, top_logprobs=len(LETTERS))
        given = answer.choices[0].logprobs if answer.choices else None
        tokens = given.content if given is not None else None
        return [(entry.token, entry.logprob) for entry in tokens[0].top_logprobs or ()] if tokens else []

    def text(self, text: str, *, max_tokens: int | None) -> str:
        """Return the answer in words, cut off after `max_tokens`."""
        limits = {} if max_tokens is None else {"max_tokens": max_tokens}
        answer = self._create(self.question.about(text, answer=TEXT_ANSWER), **limits)
        return (answer.choices[0].message.content or "") if answer.choices else ""

    def _create(self, content: str, **settings: Any) -> Any:
        messages = [{"role": "user", "content": content}]
        return self._client.chat.completions.create(
            model=self.endpoint.model, messages=messages, temperature=0.0, **settings
        )


def choose_form(probed: EndpointRequests) -> tuple[str, str]:
    """Return `letters` or `text`, and why: by a question whose answer is not used.

    Raises:
        ValueError: If the endpoint does not answer, or not in the form that the recipe asks for.
    """
    import openai

    wanted, num_options = probed.endpoint.answers, len(probed.question.domain_set) + 1  # and "none of these"
    try:
        reason: str | None = "the recipe asks for it"
        if wanted != TEXT_FORM:
            too_many = f"there are {num_options} options and {len(LETTERS)} letters"
            reason = too_many if num_options > len(LETTERS) else _why_no_letters(probed)
            if reason is None:
                return LETTERS_FORM, "the server gives log-probabilities, so a text costs one token"
            if wanted == LETTERS_FORM:
                raise ValueError(f"detect.openai.answers: letters cannot be used: {reason}; choose auto or text")
        probed.text(_PROBE, max_tokens=1)
    except openai.OpenAIError as error:
        raise ValueError(_no_answer(error, probed.endpoint)) from None
    return TEXT_FORM, reason


def _why_no_letters(probed: EndpointRequests) -> str | None:
    """Return why the letters' probabilities cannot be had from the endpoint; None if they can."""
    import openai

    try:
        found = probed.letters(_PROBE)
    except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
        return f"the server refuses a request for log-probabilities ({reason_of(error)})"
    if not found:
        return "the server gives no log-probabilities"
    mass = letter_mass(found, num_letters=len(probed.question.domain_set) + 1).sum()
    if mass < LEAST_MASS:
        return f"the model begins its answer with a letter with probability {mass:.2f} only"
    return None


def _no_answer(error: Exception, endpoint: EndpointConfig) -> str:
    """Return one line about an endpoint that does not answer: what to look at first."""
    address = endpoint.url or "OpenAI's endpoint"
    status = getattr(error, "status_code", None)
    if status in (401, 403):
        return f"detect.openai: {address} refuses the key (status {status}); set {_KEY_VARIABLE}"
    if status == 404:
        return (
            f"detect.openai.model: {address} has no model {endpoint.model!r}, or no API at this address (status 404); "
            "give the name that the server lists, and an address that ends in /v1"
        )
    if status is not None and status < 500 and status != 429:
        return f"detect.openai: {address} refuses a question to {endpoint.model!r} ({reason_of(error)})"
    return (
        f"detect.openai.url: {address} does not answer ({reason_of(error)}); start the server, correct the address, or "
        "raise detect.openai.timeout_seconds"
    )


def client_of(endpoint: EndpointConfig) -> Any:
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


def reason_of(error: Exception) -> str:
    """Return what went wrong in few words; not the server's own, which may contain the key."""
    status = getattr(error, "status_code", None)
    return f"{type(error).__name__}, status {status}" if status else type(error).__name__
