"""Multiple choice on a comparison's page: accuracies, chance and what is noise, by hand."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.comparison.cells import cells_of
from versatune_ds.comparison.plan import BaseModelPlan, ComparisonPlan
from versatune_ds.comparison.results_page.choice_accuracies import (
    chance_levels,
    chance_of,
    choices_section,
    noise_of_difference,
    noise_of_one,
)
from versatune_ds.comparison.results_page.results import Results
from versatune_ds.evaluation.choices import ChoiceQuestion


def domains(law, code):
    return {
        "law": {"loss": 1.0, "choices": {"accuracy": law, "num_questions": 50}},
        "code": {"loss": 1.0, "choices": {"accuracy": code, "num_questions": 50}},
        "general": {"loss": 1.0},
    }


def make_results(accuracies, *, base=(0.5, 0.3)):
    """Return results of three seeds, from label to their (law, code)."""
    plan = ComparisonPlan(
        name="c", recipe="r", base=BaseModelPlan(recipe="r"), runs={label: {} for label in accuracies}, seeds=(1, 2, 3),
        baseline="uniform",
    )  # fmt: skip
    made = {cell: domains(*accuracies[cell.label][cell.seed - 1]) for cell in cells_of(plan)}
    return Results(plan=plan, base=domains(*base), domains=made, split="test", weights={})


def test_chance_is_the_mean_over_questions_of_one_over_their_options(tmp_path):
    two = ChoiceQuestion(question="q", choices=("a", "b"), answer=0)
    four = ChoiceQuestion(question="q", choices=("a", "b", "c", "d"), answer=0)
    assert chance_of([two, four]) == 0.375
    path = tmp_path / "law.jsonl"
    assert chance_levels([path]) == {}  # of a page that is written again without the questions
    path.write_text(json.dumps({"question": "q", "choices": ["a", "b", "c"], "answer": 0}) + "\n")
    assert chance_levels([path]) == {"law": pytest.approx(1 / 3)}


def test_the_noise_of_a_difference_by_hand():
    # p = 26 / 52: variance of a difference 2 * .25 / 50 = .01; of the mean of two such domains .02 / 4.
    assert noise_of_difference({"law": 0.5}, {"law": 50}) == pytest.approx(0.196, abs=1e-4)
    assert noise_of_difference({"law": 0.5, "code": 0.5}, {"law": 50, "code": 50}) == pytest.approx(0.1386, abs=1e-4)
    assert noise_of_one(0.5, 100) == pytest.approx(0.098, abs=1e-4)
    assert noise_of_one(1.0, 3) == pytest.approx(1.96 * math.sqrt(0.8 * 0.2 / 3), abs=1e-4)  # no certainty


@given(st.integers(1, 400), st.floats(0, 1))
def test_more_questions_never_make_more_noise(num, share):
    accuracy = round(share * num) / num
    assert noise_of_one(accuracy, 4 * num) <= noise_of_one(accuracy, num) + 1e-12


def test_the_table_has_base_model_chance_and_paired_differences():
    results = make_results({
        "uniform": [(0.4, 0.2), (0.5, 0.2), (0.6, 0.2)], "better": [(0.5, 0.2), (0.6, 0.2), (0.7, 0.2)],
        "varies": [(0.4, 0.2), (0.6, 0.2), (0.8, 0.2)],
    })  # fmt: skip
    text = choices_section(results, chance={"law": 0.5, "code": 0.25})
    assert text[-4].splitlines() == [
        "| policy | law | code | mean over domains |",
        "|---|---:|---:|---:|",
        "| base model | 50.0 | 30.0 | 40.0 |",
        "| chance | 50.0 | 25.0 | 37.5 |",
        "| uniform | 50.0 | 20.0 | 35.0 |",
        "| better | 60.0 (+10.0 ± 0.0) | 20.0 (+0.0 ± 0.0) | 40.0 (+5.0 ± 0.0) |",
        "| varies | 60.0 (+10.0 ± 24.8) | 20.0 (+0.0 ± 0.0) | 40.0 (+5.0 ± 12.4) |",
    ]
    # By domain 2 * .25 / 50 for law; of the mean with code's p = 16 / 52: sqrt(.01 + .008521) / 2 * 1.96.
    assert "law 50, code 50. At these counts, differences between two models under 13.3 points of the mean" in text[2]
    assert "under 19.6 points of a domain" in text[2]
    assert text[3] == "- Domains in which the base model is not above chance beyond that noise: law, code."


def test_without_the_files_of_questions_chance_is_not_known():
    results = make_results({"uniform": [(0.4, 0.2)] * 3})
    text = "\n".join(choices_section(results, chance={}))
    assert "- Chance level: not known, since the files of questions are not there." in text
    assert "| chance |" not in text


def test_without_questions_there_is_no_section():
    results = make_results({"uniform": [(0.4, 0.2)] * 3})
    bare = Results(plan=results.plan, base={"law": {"loss": 1.0}}, domains={}, split="test", weights={})
    assert choices_section(bare, chance={}) == []
