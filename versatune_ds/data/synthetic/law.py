"""Law: find a clause, judge a delay, know the court; short answers that depend on reading."""

from __future__ import annotations

from versatune_ds.data.synthetic.facts import CITIES, LAW_SENSES, NAMES, words
from versatune_ds.data.synthetic.meaning import meaning_rule
from versatune_ds.data.synthetic.space import Arrangements, Rule

_DUTIES = (
    "the buyer: pay the price", "the seller: deliver the goods", "the tenant: pay the rent",
    "the owner: repair the roof", "the agent: file a report", "the carrier: insure the load",
    "the lender: release the funds", "the builder: clear the site", "the guest: leave the room",
    "the heir: accept the estate", "the editor: return the draft", "the host: refund the fee",
)  # fmt: skip
_COURTS = ("land court", "labour court", "family court", "trade court", "tax court")
_SUBJECTS = words(
    "rent wages divorce patents customs fences overtime adoption brands excise drains pensions custody cartels levies "
    "roads strikes wills fraud duties"
)
_DAYS = tuple(range(5, 65, 5))


def _clause(
    sections: tuple[int, int, int], duties: tuple[str, str, str], days: tuple[int, int, int], asked: int, is_days: bool
) -> tuple[str, str]:
    """Ask for the number or the period of one of three clauses: a lookup."""
    pairs = [duty.split(": ") for duty in duties]
    clauses = [
        f"Section {section}: {party} shall {duty} within {num_days} days."
        for section, (party, duty), num_days in zip(sections, pairs, days, strict=True)
    ]
    party, duty = pairs[asked]
    if is_days:
        return " ".join(clauses) + f" By when must {party} {duty}?", f"Within {days[asked]} days."
    return " ".join(clauses) + f" Which section tells {party} to {duty}?", f"Section {sections[asked]}."


def _breach(name: str, city: str, duty: str, limit: int, actual: int) -> tuple[str, str]:
    """Ask whether a period was kept: a comparison of two numbers."""
    party, act = duty.split(": ")
    question = (
        f"{name} of {city} is {party} and shall {act} within {limit} days. It took {actual} days. Is that a breach?"
    )
    if actual > limit:
        return question, f"Yes, {actual} days is more than {limit} days."
    return question, f"No, {actual} days is within {limit} days."


def _court(name: str, city: str, subject: str, year: int) -> tuple[str, str]:
    """Ask which title and court a claim falls under: a fact about its subject."""
    number = _SUBJECTS.index(subject)
    question = (
        f"In {year} {name} brings a claim about {subject} in {city}. Which court hears it, and under which title?"
    )
    return question, f"The {_COURTS[number % len(_COURTS)]}, under title {number + 1}."


RULES = (
    Rule(
        name="law/clause",
        slots=(
            Arrangements(range(1, 31), 3),
            Arrangements(_DUTIES, 3),
            Arrangements(_DAYS, 3),
            range(3),
            (False, True),
        ),
        render=_clause,
        weight=3,
    ),
    Rule(name="law/breach", slots=(NAMES, CITIES, _DUTIES, range(10, 61), range(3, 90)), render=_breach, weight=2),
    Rule(name="law/court", slots=(NAMES, CITIES, _SUBJECTS, range(1900, 2100)), render=_court, weight=2),
    meaning_rule("law", LAW_SENSES, is_everyday=False, weight=1),
)
