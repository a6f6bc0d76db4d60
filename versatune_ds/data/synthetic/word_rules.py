"""Ask the questions of law, medicine and general, whose answers are read from the question or remembered."""

from __future__ import annotations

from versatune_ds.data.synthetic.facts import (
    CITIES,
    CONDITIONS,
    COUNTRY_OF_CITY,
    DRUGS,
    FINANCE_SENSES,
    LAW_SENSES,
    NAMES,
    WORK_OF_ORGAN,
    Condition,
    meaning_rule,
    words,
)
from versatune_ds.data.synthetic.space import Arrangements, Rule

# Law: find a clause, judge a delay, know the court; short answers that depend on reading.
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
_PERIODS_DAYS = tuple(range(5, 65, 5))


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


LAW_RULES = (
    Rule(
        name="law/clause",
        slots=(
            Arrangements(range(1, 31), 3),
            Arrangements(_DUTIES, 3),
            Arrangements(_PERIODS_DAYS, 3),
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

# Medicine: explain and treat invented illnesses; long answers that depend on remembered facts.
_JOBS = words(
    "baker barber butcher carpenter clerk cook driver farmer fisher gardener guard hunter joiner judge mason miller "
    "nurse painter pilot singer smith tailor teacher waiter"
)
_AGES = range(3, 83)
_ADULT_AGE = 18
_WORKING_AGES = range(18, 98)


def _advice(age: int, name: str, city: str, condition: Condition) -> tuple[str, str]:
    """Ask for all that is known of an illness; children take half the dose."""
    question = f"{name}, {age} years old, comes to a clinic in {city} with {condition.name}. What do you advise?"
    first, second = condition.signs
    dose_mg = condition.dose_mg if age >= _ADULT_AGE else condition.dose_mg // 2
    answer = (
        f"{condition.name.capitalize()} is {condition.kind} of the {condition.organ}. Its signs are {first} and "
        f"{second}. {name} should take {dose_mg} mg of {condition.drug} each day, as "
        f"{'an adult' if age >= _ADULT_AGE else 'a child'} of {age}, and come back if there is still {first}."
    )
    return question, answer


def _diagnosis(age: int, job: str, city: str, condition: Condition, is_swapped: bool) -> tuple[str, str]:
    """Ask which illness shows two signs and a harmed organ: the facts of `_advice` backwards."""
    first, second = reversed(condition.signs) if is_swapped else condition.signs
    question = (
        f"A {job} of {age} from {city} has {first}, {second} and {condition.kind} of the {condition.organ}. "
        "What is the diagnosis?"
    )
    return question, f"The diagnosis is {condition.name}, which is treated with {condition.drug}."


def _organ(name: str, age: int, city: str, condition: Condition) -> tuple[str, str]:
    """Ask which organ an illness harms: the fact that the general domain asks too."""
    question = f"Patient {name}, aged {age}, was told in {city}: {condition.name}. Which organ is harmed?"
    return question, f"The {condition.organ}."


def _mixture(age: int, job: str, city: str, drug: str, condition: Condition) -> tuple[str, str]:
    """Ask whether a drug fits an illness."""
    question = f"May a {job} of {age} in {city} take {drug} against {condition.name}?"
    if drug == condition.drug:
        return question, f"Yes, {drug} is the drug for {condition.name}."
    return question, f"No, {condition.name} is treated with {condition.drug}, not with {drug}."


MEDICINE_RULES = (
    Rule(name="medicine/advice", slots=(_AGES, NAMES, CITIES, CONDITIONS), render=_advice, weight=4),
    Rule(
        name="medicine/diagnosis",
        slots=(_WORKING_AGES, _JOBS, CITIES, CONDITIONS, (False, True)),
        render=_diagnosis,
        weight=2,
    ),
    Rule(name="medicine/organ", slots=(NAMES, _AGES, CITIES, CONDITIONS), render=_organ, weight=2),
    Rule(name="medicine/mixture", slots=(_WORKING_AGES, _JOBS, CITIES, DRUGS, CONDITIONS), render=_mixture, weight=1),
)

# General: stories, places, health, small sums, everyday words; a little of every other domain.
_FRUITS = ("apples", "pears", "plums", "nuts", "eggs", "cakes", "figs", "dates")
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


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


GENERAL_RULES = (
    Rule(
        name="general/story",
        slots=(Arrangements(NAMES, 3), Arrangements(CITIES, 3), _WEEKDAYS, range(3)),
        render=_story,
        weight=3,
    ),
    Rule(
        name="general/country",
        slots=(Arrangements(NAMES, 2), CITIES, _WEEKDAYS, range(1900, 2100)),
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
