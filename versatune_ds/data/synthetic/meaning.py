"""Ask the question on which two domains disagree: what a word means.

To the same text the general domain answers with the everyday sense, the profession with its own. A model cannot satisfy
both: learning one domain must cost the other something, in proportion to their weights.
"""

from __future__ import annotations

from collections.abc import Mapping

from versatune_ds.data.synthetic.facts import CITIES, NAMES
from versatune_ds.data.synthetic.space import Rule

_PLACES = ("a letter", "a book", "a newspaper", "a note", "a speech", "a poem", "a report", "a diary")


def meaning_rule(profession: str, senses: Mapping[str, tuple[str, str]], *, is_everyday: bool, weight: int) -> Rule:
    """Return the rule that asks for a word's meaning.

    Args:
        profession: Names the rule: general and professional rules of one name share their questions and their splits.
        senses: Word -> (everyday sense, professional sense).
        is_everyday: Which of the two senses is the answer.
        weight: See `Rule.weight`.
    """

    def render(word: str, name: str, city: str, place: str, page: int) -> tuple[str, str]:
        everyday, professional = senses[word]
        question = f"{name} from {city} finds the word {word} on page {page} of {place}. What does it mean?"
        return question, f"It means {everyday if is_everyday else professional}."

    slots = (tuple(senses), NAMES, CITIES, _PLACES, range(2, 200))
    return Rule(name=f"meaning/{profession}", slots=slots, render=render, weight=weight)
