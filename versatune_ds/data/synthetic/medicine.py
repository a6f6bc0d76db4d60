"""Medicine: explain and treat invented illnesses; long answers that depend on remembered facts."""

from __future__ import annotations

from versatune_ds.data.synthetic.facts import CITIES, CONDITIONS, DRUGS, NAMES, Condition, words
from versatune_ds.data.synthetic.space import Rule

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


RULES = (
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
