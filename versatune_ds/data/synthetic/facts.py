"""Define the words, facts and rules that domains share: what one domain teaches, another may ask.

Illnesses and drugs are invented and follow rules (the stem stands for the organ, the ending for the kind of illness),
so that nothing here can be mistaken for medical advice. Cities, elements and legal or financial terms are real words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from versatune_ds.data.synthetic.space import Rule


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text."""
    return tuple(text.split())


NAMES = words(
    "Ada Ben Cleo Dan Eva Finn Gita Hugo Ines Jan Kira Leo Mona Nils Olga Paul Rosa Sam Tara Umar Vera Will Xena Yuri "
    "Zoe Abel Bea Carl Dora Emil Fay Gus Hana Ivan Jade Kurt Lena Max Nora Otto Pia Quin Ruth Sven Tess Ugo Viola "
    "Wanda"
)

COUNTRY_OF_CITY = {
    "Paris": "France", "Lyon": "France", "Rome": "Italy", "Milan": "Italy", "Madrid": "Spain", "Seville": "Spain",
    "Berlin": "Germany", "Hamburg": "Germany", "Oslo": "Norway", "Bergen": "Norway", "Cairo": "Egypt",
    "Lima": "Peru", "Quito": "Ecuador", "Delhi": "India", "Mumbai": "India", "Tokyo": "Japan", "Osaka": "Japan",
    "Athens": "Greece", "Vienna": "Austria", "Dublin": "Ireland", "Lisbon": "Portugal", "Porto": "Portugal",
    "Warsaw": "Poland", "Prague": "Czechia", "Nairobi": "Kenya", "Accra": "Ghana", "Toronto": "Canada",
    "Boston": "the United States", "Chicago": "the United States", "Sydney": "Australia", "Hanoi": "Vietnam",
    "Seoul": "South Korea",
}  # fmt: skip
CITIES = tuple(COUNTRY_OF_CITY)

ORGAN_OF_STEM = {
    "bren": "liver", "vard": "heart", "dol": "stomach", "ferv": "skin", "tasp": "gut", "hux": "eye", "lumb": "lung",
    "mir": "ear", "zef": "kidney", "orst": "bone", "pelk": "nose", "quor": "throat",
}  # fmt: skip
KIND_OF_ENDING = {
    "itis": "an inflammation", "osis": "a slow hardening", "algia": "a sharp pain", "oma": "a harmless growth",
    "edia": "a swelling",
}  # fmt: skip
SIGNS = ("fever", "a cough", "a rash", "a weak grip", "a dry mouth", "pale skin", "poor sleep", "a loss of weight")
DRUGS = words("zorvin talux mepra quonil sertaf bivox ralpin ondrex kelmar fusil")
WORK_OF_ORGAN = {
    "liver": "cleans the blood", "heart": "pumps the blood", "stomach": "breaks down food", "skin": "covers the body",
    "gut": "takes up food", "eye": "sees light", "lung": "takes in air", "ear": "hears sound",
    "kidney": "makes urine", "bone": "holds the body up", "nose": "smells", "throat": "swallows food",
}  # fmt: skip

ELEMENTS = words(
    "hydrogen-H helium-He lithium-Li beryllium-Be boron-B carbon-C nitrogen-N oxygen-O fluorine-F neon-Ne sodium-Na "
    "magnesium-Mg aluminium-Al silicon-Si phosphorus-P sulfur-S chlorine-Cl argon-Ar potassium-K calcium-Ca "
    "scandium-Sc titanium-Ti vanadium-V chromium-Cr manganese-Mn iron-Fe cobalt-Co nickel-Ni copper-Cu zinc-Zn"
)
"""Name and symbol of the elements with 1 to 30 protons."""
GASES = frozenset(words("hydrogen helium nitrogen oxygen fluorine neon chlorine argon"))

LAW_SENSES = {
    "party": ("a cheerful evening with guests", "one of those who sign a contract"),
    "sentence": ("a line of words with a verb", "the punishment a court gives"),
    "motion": ("a movement", "a request made to a judge"),
    "brief": ("short", "a written argument for a court"),
    "bar": ("a place that sells drinks", "all lawyers of a country"),
    "consideration": ("kindness to others", "the price paid for a promise"),
    "title": ("the name of a book", "the right to own a thing"),
    "instrument": ("a thing to play music on", "a signed legal paper"),
}
FINANCE_SENSES = {
    "bond": ("a tie between friends", "a loan that can be sold"),
    "interest": ("the wish to know more", "the price of borrowed money"),
    "share": ("to let others have some", "a small part of a company"),
    "yield": ("to give way", "the yearly gain in percent"),
    "stock": ("a clear soup", "the capital of a company"),
    "future": ("the time to come", "a promise to trade later"),
    "spread": ("to smear on bread", "the gap between two prices"),
    "principal": ("the head of a school", "the sum that was lent"),
}
"""Word -> (everyday sense, sense in the profession): the deliberate conflict, see `meaning_rule`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """An invented illness and its treatment."""

    name: str
    organ: str
    kind: str
    """What it is, with its article."""
    signs: tuple[str, str]
    drug: str
    dose_mg: int
    """An adult's dose; a child takes half."""


def _condition(stem_number: int, ending_number: int) -> Condition:
    """Return the illness of a stem and an ending, from which everything about it follows."""
    stem, organ = list(ORGAN_OF_STEM.items())[stem_number]
    ending, kind = list(KIND_OF_ENDING.items())[ending_number]
    second_sign = (ending_number + 1 + stem_number % 7) % len(SIGNS)
    return Condition(
        name=stem + ending,
        organ=organ,
        kind=kind,
        signs=(SIGNS[ending_number], SIGNS[second_sign]),
        drug=DRUGS[(3 * stem_number + ending_number) % len(DRUGS)],
        dose_mg=20 * (ending_number + 1),
    )


CONDITIONS = tuple(
    _condition(stem_number, ending_number)
    for stem_number in range(len(ORGAN_OF_STEM))
    for ending_number in range(len(KIND_OF_ENDING))
)

_PLACES = ("a letter", "a book", "a newspaper", "a note", "a speech", "a poem", "a report", "a diary")


def meaning_rule(profession: str, senses: Mapping[str, tuple[str, str]], *, is_everyday: bool, weight: int) -> Rule:
    """Return the rule on which two domains disagree: what a word means.

    To the same text the general domain answers with the everyday sense, the profession with its own. A model cannot
    satisfy both: learning one domain must cost the other something, in proportion to their weights.

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
