"""Finance: interest, profit, better offers; very short answers that must be computed."""

from __future__ import annotations

from versatune_ds.data.synthetic.facts import CITIES, FINANCE_SENSES, NAMES, words
from versatune_ds.data.synthetic.meaning import meaning_rule
from versatune_ds.data.synthetic.space import Arrangements, Rule

_SHOPS = ("bakery", "bookshop", "cinema", "garage", "hotel", "market", "studio", "tavern")
_FUNDS = words("Kestrel Harbor Summit Willow Falcon Orchard Beacon Cedar Meadow Anchor")


def _interest(name: str, city: str, sum_dollars: int, rate_percent: int, year: int) -> tuple[str, str]:
    """Ask for a year's interest: a percentage."""
    question = (
        f"In {year} {name} puts {sum_dollars} dollars into a bank in {city} at {rate_percent}% a year. "
        "What is the interest after one year?"
    )
    return question, f"{rate_percent}% of {sum_dollars} is {sum_dollars * rate_percent // 100} dollars."


def _profit(shop: str, city: str, year: int, income: int, costs: int) -> tuple[str, str]:
    """Ask for profit or loss: a difference with its sign."""
    question = f"A {shop} in {city} took in {income} dollars and spent {costs} dollars in {year}. What is the result?"
    if income == costs:
        return question, "Neither profit nor loss."
    return question, f"A {'profit' if income > costs else 'loss'} of {abs(income - costs)} dollars."


def _better(name: str, funds: tuple[str, str, str], rates_percent: tuple[int, int, int]) -> tuple[str, str]:
    """Ask which of three funds returned most: a comparison and a lookup."""
    offers = ", ".join(f"{fund} {rate}%" for fund, rate in zip(funds, rates_percent, strict=True))
    best_rate, best_fund = max(zip(rates_percent, funds, strict=True))
    return f"{name} compares funds: {offers}. Which one returned most?", f"{best_fund}, with {best_rate}%."


RULES = (
    Rule(
        name="finance/interest",
        slots=(NAMES, CITIES, range(100, 2100, 100), range(1, 13), range(1950, 2050)),
        render=_interest,
        weight=4,
    ),
    Rule(
        name="finance/profit",
        slots=(_SHOPS, CITIES, range(1950, 2050), range(10, 510, 10), range(10, 510, 10)),
        render=_profit,
        weight=2,
    ),
    Rule(
        name="finance/better",
        slots=(NAMES, Arrangements(_FUNDS, 3), Arrangements(range(1, 25), 3)),
        render=_better,
        weight=2,
    ),
    meaning_rule("finance", FINANCE_SENSES, is_everyday=False, weight=1),
)
