"""Ask for a domain as a choice among lettered options, and read the probabilities of the letters.

A model's next token after "answer with the letter" is a distribution over A, B, C, ...: a soft label from one token,
where an answer in words is hundreds of tokens, and states probabilities that a model seldom has.

Models prefer some letters whatever the text. So the options are rotated by a number made of the text: the preference is
then spread over all domains instead of added to one. It remains in every single label.

Worked example: domains law and code, rotated by 1: A) code, B) none of these, C) law. The probabilities A .6, B .1,
C .1 and "The" .2 give code .75 and law .125; .125 belongs to no domain.

Shape legend: **K** domains.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

LETTERS = "ABCDEFGHIJKLMNOPQRST"
"""As many as there are log-probabilities of a token to be had from an endpoint at most."""

LEAST_MASS = 0.1
"""Probability that the letters must have together; with less, the model does not begin its answer with a letter."""

_NONE = "none of these"
_MARKS = " \t\n▁Ġ*_`\"'()[].:"
LETTER_ANSWER = "Answer with the letter of one option and nothing else."


@dataclass(frozen=True, slots=True, kw_only=True)
class LetteredOptions:
    """The options of one question: the domains and "none of these", each with a letter."""

    texts: tuple[str, ...]
    """A line for each letter."""
    places: tuple[int, ...]
    """The domain of each letter; K is "none of these"."""

    def label(self, log_probabilities: Iterable[tuple[str, float]]) -> np.ndarray:
        """Return the probability of every domain, float64 [K]; zeros where the letters have less than LEAST_MASS.

        Args:
            log_probabilities: (token, natural log of its probability) of the likeliest first tokens of an answer.
        """
        mass = letter_mass(log_probabilities, num_letters=len(self.places))
        label = np.zeros(len(self.places))
        label[list(self.places)] = mass
        return label[:-1] / mass.sum() if mass.sum() >= LEAST_MASS else np.zeros(len(label) - 1)


def lettered(names: Iterable[str], *, text: str) -> LetteredOptions:
    """Return the options of the question about a text, rotated by a number made of the text.

    Args:
        names: What the list shows of every domain: its name, perhaps with a description.
        text: The text.
    """
    options = [*names, _NONE]
    first = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") % len(options)
    places = [*range(first, len(options)), *range(first)]
    lines = [f"{letter}) {options[place]}" for letter, place in zip(LETTERS, places, strict=False)]
    return LetteredOptions(texts=tuple(lines), places=tuple(places))


def letter_mass(log_probabilities: Iterable[tuple[str, float]], *, num_letters: int) -> np.ndarray:
    """Return the probability of each letter, float64 [letters]: "A", " A" and "(A)" are the same one."""
    mass = np.zeros(num_letters)
    for token, log_probability in log_probabilities:
        letter = token.strip(_MARKS)
        if len(letter) == 1 and letter in LETTERS[:num_letters]:
            mass[LETTERS.index(letter)] += math.exp(min(log_probability, 0.0))
    return mass
