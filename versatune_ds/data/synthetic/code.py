"""Code: run three lines in the head, look into a list, write a small function."""

from __future__ import annotations

from versatune_ds.data.synthetic.facts import words
from versatune_ds.data.synthetic.space import Arrangements, Rule

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
    """Ask for a list's element."""
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


RULES = (
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
