"""The compared numbers, by hand: changes against the base model, means with intervals, paired tests."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.comparison.cells import cells_of
from versatune_ds.comparison.outcome import outcome
from versatune_ds.comparison.plan import BaseModelPlan, ComparisonPlan
from versatune_ds.comparison.results_page.intervals import holm, mean_with_interval, paired_p_value
from versatune_ds.comparison.results_page.results import Results
from versatune_ds.comparison.results_page.table import markdown_table, p_values, retention_table

BASE = {"law": {"loss": 2.0}, "code": {"loss": 1.0}}


def domains(law, code, *, exact=None):
    numbers = {"law": {"loss": law}, "code": {"loss": code}}
    for name, accuracy in (exact or {}).items():
        numbers[name]["exact_match"] = {"accuracy": accuracy}
    return numbers


def test_an_outcome_without_target_is_mean_loss_and_worst_domain():
    result = outcome(domains(1.5, 1.1), BASE, target=None)
    assert result.loss == pytest.approx(1.3)
    assert result.worst == pytest.approx(-0.1)
    assert (result.target, result.others, result.exact) == (None, None, None)


def test_an_outcome_with_target_splits_the_target_from_the_others():
    base = domains(2.0, 1.0, exact={"law": 0.2, "code": 0.5})
    result = outcome(domains(1.5, 1.1, exact={"law": 0.4, "code": 0.3}), base, target="law")
    assert (result.target, result.others) == pytest.approx((0.25, -0.1))
    assert (result.exact, result.others_exact) == pytest.approx((0.35, -0.2))


def test_a_domain_that_was_not_measured_is_omitted():
    result = outcome({"law": {"loss": 1.0}, "code": {"loss": None}}, BASE, target=None)
    assert (result.loss, result.worst) == (1.0, 0.5)


def test_the_interval_of_one_two_three_is_students():
    mean = mean_with_interval([1.0, 2.0, 3.0])
    assert (mean.mean, mean.half_width) == pytest.approx((2.0, 2.4841), abs=1e-4)
    assert math.isnan(mean_with_interval([1.0]).half_width)


def test_the_paired_test_finds_a_steady_difference_that_the_means_hide():
    baseline = [1.0, 5.0, 9.0]
    assert paired_p_value([1.1, 5.11, 9.09], baseline) < 0.01
    assert paired_p_value([1.1, 4.9, 9.0], baseline) > 0.5
    assert paired_p_value(baseline, baseline) == 1.0
    assert math.isnan(paired_p_value([1.0], [2.0]))


def test_holms_correction_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.02, math.nan])[0] == pytest.approx(0.02)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_corrected_p_values_are_never_smaller_and_keep_their_order(p_values):
    corrected = holm(p_values)
    assert all(c >= p and c <= 1 for c, p in zip(corrected, p_values, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert list(np.array(corrected)[order]) == sorted(corrected)


def results(*, targets=()):
    runs = {"uniform": {}, "moves": {}}
    plan = ComparisonPlan(
        name="c", recipe="r", base=BaseModelPlan(recipe="r"), runs=runs, seeds=(1, 2, 3), baseline="uniform",
        targets=targets,
    )  # fmt: skip
    made = {}
    for cell in cells_of(plan):
        gain = 0.1 + 0.001 * cell.seed if cell.label == "moves" else 0.0
        made[cell] = domains(1.5 - gain + 0.2 * cell.seed, 1.0)
    return Results(plan=plan, base=BASE, domains=made, split="test", weights={})


def test_the_table_has_means_intervals_and_starred_differences():
    header, _, uniform, moves = markdown_table(results()).splitlines()
    assert header == "| policy | mean loss, nats a token | worst domain, % | seeds won |"
    assert uniform.startswith("| uniform | 1.4500 ± 0.2484 |")
    assert moves.startswith("| moves | 1.3990 ± 0.2472 (-0.0510\\*) |")
    assert (uniform.split(" | ")[-1], moves.split(" | ")[-1]) == ("- |", "3 of 3 |")


def test_seeds_are_won_in_the_other_domains_where_there_are_targets():
    made = results(targets=("law", "code"))
    domains_of = dict(made.domains)
    for cell in domains_of:
        if cell.label == "moves" and cell.seed == 1:
            domains_of[cell] = domains(9.0, 9.0)
    table = markdown_table(replace(made, domains=domains_of))
    # With law as target the others are code, 1.0 with both; with code as target they are law, which "moves" keeps.
    assert table.splitlines()[3].endswith("| 2 of 6 |")


def results_of_targets(*, seeds, losses):
    """Return results in which "moves" lowers the target's loss of 1.0 to `losses[target][seed]`, "uniform" does not."""
    plan = ComparisonPlan(
        name="c", recipe="r", base=BaseModelPlan(recipe="r"), runs={"uniform": {}, "moves": {}}, seeds=seeds,
        baseline="uniform", targets=tuple(losses),
    )  # fmt: skip
    base = {name: {"loss": 1.0} for name in (*losses, "other")}
    made = {}
    for cell in cells_of(plan):
        loss = losses[cell.target][cell.seed - 1] if cell.label == "moves" else 1.0
        made[cell] = {**base, cell.target: {"loss": loss}}
    return Results(plan=plan, base=base, domains=made, split="test", weights={})


def test_several_targets_are_the_population_and_their_seeds_are_averaged_first():
    made = results_of_targets(seeds=(1, 2), losses={"law": (0.9, 0.7), "code": (0.5, 0.3), "art": (0.9, 0.9)})
    assert made.values("moves", "target") == pytest.approx([0.2, 0.6, 0.1])
    by_run = [value for value, _ in made.pairs_of_runs("moves", "target")]
    assert sorted(by_run) == pytest.approx([0.1, 0.1, 0.1, 0.3, 0.5, 0.7])
    # Mean 0.3, standard deviation 0.26458, standard error 0.15275, t 1.9640 with 2 degrees of freedom: p 0.1885.
    # Six values taken as independent would give t 2.928 with 5 degrees of freedom, p 0.033, and a star.
    assert p_values(made, "target")["moves"] == pytest.approx(0.1885, abs=1e-4)
    moves = markdown_table(made).splitlines()[-1].split(" | ")
    assert moves[3] == "30.00 % ± 65.72 % (+30.00)"


def test_with_one_target_or_none_the_seeds_are_the_population():
    made = results_of_targets(seeds=(1, 2), losses={"law": (0.9, 0.7)})
    assert made.values("moves", "target") == pytest.approx([0.1, 0.3])
    assert results().values("uniform", "loss") == pytest.approx([1.35, 1.45, 1.55])


def test_one_seed_of_several_targets_gives_an_interval():
    made = results_of_targets(seeds=(1,), losses={"law": (0.9,), "code": (0.8,), "art": (0.7,)})
    mean = mean_with_interval(made.values("moves", "target"))
    assert (mean.mean, mean.half_width) == pytest.approx((0.2, 0.2484), abs=1e-4)


def test_the_retention_matrix_has_a_row_for_every_target_and_marks_the_targets_own_cell():
    lines = retention_table(results(targets=("law", "code"))).splitlines()
    assert lines[0] == "| policy | law | code |"
    assert lines[2:] == [
        "| uniform, law | **+5.0** | +0.0 |",
        "| uniform, code | +5.0 | **+0.0** |",
        "| moves, law | **+10.1** | +0.0 |",
        "| moves, code | +10.1 | **+0.0** |",
    ]


def test_bits_a_byte_are_a_measure_where_every_domain_has_them():
    base = {"law": {"loss": 2.0, "bits_per_byte": 0.8}, "code": {"loss": 1.0, "bits_per_byte": 0.4}}
    after = {"law": {"loss": 1.5, "bits_per_byte": 0.6}, "code": {"loss": 1.0, "bits_per_byte": 0.3}}
    assert outcome(after, base, target=None).bits == pytest.approx(0.45)
    assert outcome({**after, "code": {"loss": 1.0}}, base, target=None).bits is None  # a result of an early version
    assert outcome({**after, "code": {"loss": None, "bits_per_byte": None}}, base, target=None).bits == 0.6


def test_a_missing_run_leaves_the_means_and_takes_its_pair():
    made = results()
    missing = next(cell for cell in made.domains if (cell.label, cell.seed) == ("moves", 2))
    without = replace(made, domains={cell: value for cell, value in made.domains.items() if cell != missing})
    assert without.values("uniform", "loss") == pytest.approx([1.35, 1.45, 1.55])
    assert [value - other for value, other in without.pairs("moves", "loss")] == pytest.approx([-0.0505, -0.0515])
    assert markdown_table(without).splitlines()[-1].endswith(" | 2 of 2 |")


def test_of_several_targets_a_pair_has_the_same_seeds_on_both_sides():
    made = results_of_targets(seeds=(1, 2), losses={"law": (0.9, 0.7), "code": (0.5, 0.3)})
    missing = next(c for c in made.domains if (c.label, c.target, c.seed) == ("uniform", "law", 2))
    without = replace(made, domains={cell: value for cell, value in made.domains.items() if cell != missing})
    assert without.values("moves", "target") == pytest.approx([0.2, 0.6])
    assert without.pairs("moves", "target") == [pytest.approx((0.1, 0.0)), pytest.approx((0.6, 0.0))]


def test_a_policy_none_of_whose_runs_is_there_has_dashes():
    made = results()
    without = replace(made, domains={cell: value for cell, value in made.domains.items() if cell.label != "moves"})
    assert markdown_table(without).splitlines()[-1] == "| moves | - | - | 0 of 0 |"
    assert retention_table(without).splitlines()[-1] == "| moves | - | - |"
    assert math.isnan(p_values(without, "loss")["moves"])
