"""General: stories, places, health, small sums, everyday words; a little of every other domain."""

from __future__ import annotations

from versatune_ds.data.synthetic.facts import (
    CITIES,
    CONDITIONS,
    COUNTRY_OF_CITY,
    FINANCE_SENSES,
    LAW_SENSES,
    NAMES,
    WORK_OF_ORGAN,
    Condition,
)
from versatune_ds.data.synthetic.meaning import meaning_rule
from versatune_ds.data.synthetic.space import Arrangements, Rule

_FRUITS = ("apples", "pears", "plums", "nuts", "eggs", "cakes", "figs", "dates")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def _story(names: tuple[str, ...], cities: tuple[str, ...], day: str, asked: int) -> tuple[str, str]:
    """Ask where one of three people is: the lookup of a law clause, in everyday words."""
    stays = " ".join(f"{name} is in {city}." for name, city in zip(names, cities, strict=True))
    return f"On {day} {stays} Where is {names[asked]}?", f"{names[asked]} is in {cities[asked]}."


def _country(names: tuple[str, str], city: str, day: str, year: int) -> tuple[str, str]:
    """Ask for a city's country: a fact."""
    question = f"{names[0]} met {names[1]} in {city} on a {day} in {year}. Which country is that in?"
    return question, f"{city} is in {COUNTRY_OF_CITY[city]}."


def _health(names: tuple[str, str], city: str, condition: Condition) -> tuple[str, str]:
    """Ask which organ an illness harms and what it is for: medicine's fact and one more."""
    question = f"{names[0]} tells {names[1]} from {city} about {condition.name}. Which part of the body does it harm?"
    return question, f"The {condition.organ}, which {WORK_OF_ORGAN[condition.organ]}."


def _fruit(name: str, city: str, fruit: str, first: int, second: int, is_gift: bool) -> tuple[str, str]:
    """Ask for a small sum or difference."""
    act = "gives away" if is_gift else "buys"
    rest = first - second if is_gift else first + second
    question = f"{name} of {city} has {first} {fruit} and {act} {second}. How many {fruit} are there now?"
    return question, f"{first} {'-' if is_gift else '+'} {second} = {rest} {fruit}."


RULES = (
    Rule(
        name="general/story",
        slots=(Arrangements(NAMES, 3), Arrangements(CITIES, 3), _DAYS, range(3)),
        render=_story,
        weight=3,
    ),
    Rule(
        name="general/country",
        slots=(Arrangements(NAMES, 2), CITIES, _DAYS, range(1900, 2100)),
        render=_country,
        weight=2,
    ),
    Rule(name="general/health", slots=(Arrangements(NAMES, 2), CITIES, CONDITIONS), render=_health, weight=3),
    Rule(
        name="general/fruit",
        slots=(NAMES, CITIES, _FRUITS, range(30, 60), range(1, 30), (False, True)),
        render=_fruit,
        weight=2,
    ),
    meaning_rule("law", LAW_SENSES, is_everyday=True, weight=1),
    meaning_rule("finance", FINANCE_SENSES, is_everyday=True, weight=1),
)
