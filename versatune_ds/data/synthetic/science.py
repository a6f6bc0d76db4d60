"""Science: distances, solutions, elements; worked answers, some computed, some remembered."""

from __future__ import annotations

from versatune_ds.data.synthetic.facts import CITIES, ELEMENTS, GASES, NAMES
from versatune_ds.data.synthetic.space import Rule

_BODIES = ("cart", "ball", "train", "boat", "drone", "horse", "lift", "rocket")
_SOLUTES = ("salt", "sugar", "acid", "soda", "iodine", "alcohol")


def _distance(name: str, city: str, body: str, speed: int, seconds: int, year: int) -> tuple[str, str]:
    """Ask how far a body goes: a product."""
    question = f"In {year} {name} of {city} saw a {body} that moved at {speed} m/s for {seconds} s. How far did it go?"
    return question, f"{speed} * {seconds} = {speed * seconds} m."


def _solution(name: str, city: str, flask: int, solute: str, volume_ml: int, percent: int) -> tuple[str, str]:
    """Ask for the dissolved part of a solution: a percentage, as in finance."""
    question = (
        f"Flask {flask} of {name} in {city} holds {volume_ml} ml of {solute} at {percent}%. How much {solute} is in it?"
    )
    return question, f"{percent}% of {volume_ml} is {volume_ml * percent // 100} ml."


def _element(name: str, city: str, num_protons: int, sample: int) -> tuple[str, str]:
    """Ask which element has a number of protons: a fact."""
    element, symbol = ELEMENTS[num_protons - 1].split("-")
    question = (
        f"In {city} {name} finds that atoms of sample {sample} have a proton number of {num_protons}. What is it?"
    )
    state = "a gas" if element in GASES else "a solid"
    return question, f"It is {element}, symbol {symbol}, {state} at room temperature."


RULES = (
    Rule(
        name="science/distance",
        slots=(NAMES, CITIES, _BODIES, range(2, 21), range(2, 11), range(1950, 2050)),
        render=_distance,
        weight=2,
    ),
    Rule(
        name="science/solution",
        slots=(NAMES, CITIES, range(1, 100), _SOLUTES, range(100, 2100, 100), range(1, 26)),
        render=_solution,
        weight=4,
    ),
    Rule(
        name="science/element",
        slots=(NAMES, CITIES, range(1, len(ELEMENTS) + 1), range(100, 1000)),
        render=_element,
        weight=3,
    ),
)
