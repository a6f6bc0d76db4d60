"""Ask the questions of finance, science and code, most of whose answers are computed."""

from __future__ import annotations

from versatune_ds.data.synthetic.facts import CITIES, ELEMENTS, FINANCE_SENSES, GASES, NAMES, meaning_rule, words
from versatune_ds.data.synthetic.space import Arrangements, Rule

# Finance: interest, profit, better offers; very short answers that must be computed.
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


FINANCE_RULES = (
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

# Science: distances, solutions, elements; worked answers, some computed, some remembered.
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


SCIENCE_RULES = (
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

# Code: run three lines in the head, look into a list, write a small function.
_WORDS = words(
    "ash birch cedar elm fir hazel larch maple oak pine rowan spruce willow yew apple plum cherry olive fig lemon"
)
_VARIABLES = tuple("abcdefghkmnpqrstuvwxyz")
_OPERATORS = ("+", "-", "*")
_VERBS = words("get find make read build fetch")
_NOUNS = words("ages bills books boxes cards codes coins costs dates files flags goods hours items jobs keys")
_FILTERS = {
    "even": "{n} % 2 == 0", "odd": "{n} % 2 == 1", "positive": "{n} > 0", "negative": "{n} < 0",
    "large": "{n} > 100", "small": "{n} < 10",
}  # fmt: skip
_CHANGES = {"plain": "{n}", "doubled": "2 * {n}", "squared": "{n} * {n}", "halved": "{n} // 2", "negated": "-{n}"}
_FOLDS = {"sum": "sum({g})", "largest": "max({g})", "smallest": "min({g})", "sorted list": "sorted({g})"}


def _arithmetic(variables: tuple[str, str], left: int, operator: str, right: int, word: str) -> tuple[str, str]:
    """Ask what two assignments and an expression print: the products of science, the sums of general."""
    a, b = variables
    question = f"What does this print?\n{a} = {left}\n{b} = {right}\nprint({a} {operator} {b})  # {word}"
    value = {"+": left + right, "-": left - right, "*": left * right}[operator]
    return question, f"{left} {operator} {right} = {value}, so it prints {value}."


def _percent(variables: tuple[str, str], amount: int, rate: int, word: str) -> tuple[str, str]:
    """Ask for a percentage in integer arithmetic: the sums of finance and science, in code."""
    a, b = variables
    question = f"What does this print?\n{a} = {amount}\n{b} = {rate}\nprint({a} * {b} // 100)  # {word}"
    return question, f"{rate}% of {amount} is {amount * rate // 100}, so it prints {amount * rate // 100}."


def _lookup(variable: str, elements: tuple[str, ...], place: int) -> tuple[str, str]:
    question = f"What does this print?\n{variable} = {list(elements)}\nprint({variable}[{place}])"
    return question, f"It prints {elements[place]}."


def _function(verb: str, noun: str, variable: str, kind: str, change: str, fold: str, task: int) -> tuple[str, str]:
    """Ask for a function that filters, changes and folds a list."""
    name = f"{verb}_{noun}"
    wanted = f"the {fold} of the {kind} numbers" + ("" if change == "plain" else f", each {change}")
    question = (
        f"Task {task}: write a Python function {name}({noun}) that returns {wanted}. Call each number {variable}."
    )
    generator = f"{_CHANGES[change]} for {{n}} in {noun} if {_FILTERS[kind]}".format(n=variable)
    return question, f"def {name}({noun}):\n    return {_FOLDS[fold].format(g=generator)}"


CODE_RULES = (
    Rule(
        name="code/arithmetic",
        slots=(Arrangements(_VARIABLES + _NOUNS, 2), range(2, 21), _OPERATORS, range(2, 11), _WORDS),
        render=_arithmetic,
        weight=2,
    ),
    Rule(
        name="code/percent",
        slots=(Arrangements(_VARIABLES + _NOUNS, 2), range(100, 2100, 100), range(1, 26), _WORDS),
        render=_percent,
        weight=3,
    ),
    Rule(name="code/lookup", slots=(_VARIABLES, Arrangements(_WORDS, 4), range(4)), render=_lookup, weight=2),
    Rule(
        name="code/function",
        slots=(_VERBS, _NOUNS, _VARIABLES, tuple(_FILTERS), tuple(_CHANGES), tuple(_FOLDS), range(1, 100)),
        render=_function,
        weight=3,
    ),
)
