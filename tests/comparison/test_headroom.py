"""How much any mixture could gain: shares, the front and ranks by hand, and the sentences that follow from them."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.comparison.cells import Cell
from versatune_ds.comparison.headroom import (
    best_of,
    bootstrap_ratio,
    distance_to_front,
    follow_up_cells,
    front_distances,
    gains_of,
    headroom_of,
    rank_correlation,
    share_of,
)
from versatune_ds.comparison.plan import BaseModelPlan, ComparisonPlan
from versatune_ds.comparison.results_page.headroom_text import headroom_section
from versatune_ds.comparison.results_page.page import write_page
from versatune_ds.comparison.results_page.results import Results

GAINS = {"static01": (0.3, 0.1), "static02": (0.2, 0.3), "steer": (0.1, 0.1), "planned": (0.05, 0.15)}
"""Nats below uniform's mean loss with seeds 1 and 2."""


def make_results(gains=GAINS, *, tilt=None, seeds=(1, 2), predicted=None, plans=None, **changed):
    """Return results on law (base 2.0) and code (base 1.0); a tilt moves loss from law to code, mean unchanged."""
    runs = {"uniform": {}, **{label: {} for label in gains if not label.startswith("static")}}
    if "planned" in runs:
        runs["planned"] = {"mixture.prior": "{plan:planned}"}
    plan = ComparisonPlan(
        name="c", recipe="r", base=BaseModelPlan(recipe="r"), runs=runs, seeds=seeds, baseline="uniform",
        plans={"planned": {"for": "mean"}}, static=2, **changed,
    )  # fmt: skip
    made = {}
    for label, by_seed in {"uniform": (0.0,) * len(seeds), **gains}.items():
        mixture = (("law", 0.5), ("code", 0.5)) if label.startswith("static") else None
        for seed, gain in zip(seeds, by_seed, strict=False):
            loss, shift = 1.25 - gain, (tilt or {}).get(label, 0.0)
            law, code = {"loss": loss + 0.5 - shift}, {"loss": loss - 0.5 + shift}
            made[Cell(label=label, target=None, seed=seed, mixture=mixture)] = {"law": law, "code": code}
    return Results(
        plan=plan, base={"law": {"loss": 2.0, "num_examples": 1}, "code": {"loss": 1.0, "num_examples": 1}},
        domains=made, split="test", weights={cell: {"law": 0.5, "code": 0.5} for cell in made}, uniform="uniform",
        fixed=("uniform", *(["planned"] if "planned" in runs else [])), predicted=predicted or {},
    )  # fmt: skip


def test_the_best_mixture_is_chosen_without_each_seed_and_measured_on_it():
    gains = gains_of(make_results())
    assert gains["static01"] == pytest.approx({1: 0.3, 2: 0.1})
    best = best_of(gains, ["static01", "static02"], seeds=(1, 2))
    assert (best.label, best.seeds, best.judged) == ("static02", (1, 2), "left-out seeds")
    assert best.chosen_by == pytest.approx(0.25)
    # Seed 2 chooses static02, which gains 0.2 on seed 1; seed 1 chooses static01, which gains 0.1 on seed 2.
    assert best.gains == pytest.approx({1: 0.2, 2: 0.1})
    assert best.gain == pytest.approx(0.15)


def test_a_mixture_chosen_on_the_first_seed_is_measured_on_the_others():
    gains = {"static01": {1: 0.3, 2: 0.1, 3: 0.2}, "static02": {1: 0.2}, "planned": {1: 0.1, 2: 0.9, 3: 0.9}}
    best = best_of(gains, list(gains), seeds=(1, 2, 3))
    assert (best.label, best.seeds, best.judged) == ("static01", (1,), "other seeds")
    assert best.gains == {2: 0.1, 3: 0.2}
    alone = best_of({"static01": {1: 0.3}}, ["static01"], seeds=(1,))
    assert (alone.judged, alone.gains) == ("same seed", {1: 0.3})


@given(st.lists(st.tuples(*[st.floats(-1, 1)] * 3), min_size=1, max_size=6))
def test_the_honest_gain_is_never_above_the_one_on_the_seeds_that_chose(rows):
    gains = {f"static{n}": dict(zip((1, 2, 3), row, strict=True)) for n, row in enumerate(rows)}
    best = best_of(gains, list(gains), seeds=(1, 2, 3))
    assert best.gain <= best.chosen_by + 1e-12


def test_the_best_mixture_of_one_seed_is_run_with_the_others():
    results = make_results({"static01": (0.3,), "static02": (0.2,), "steer": (0.1, 0.1)})
    (cell,) = follow_up_cells(results)
    assert (cell.run_name, cell.mixture) == ("static01-seed2", (("law", 0.5), ("code", 0.5)))
    made = {**results.domains, cell: {"law": {"loss": 1.5}, "code": {"loss": 0.5}}}
    assert follow_up_cells(replace(results, domains=made)) == []
    assert follow_up_cells(make_results()) == []


def test_a_policys_share_of_the_headroom_by_hand():
    results = make_results()
    best = best_of(gains_of(results), ["static01", "static02"], seeds=(1, 2))
    assert headroom_of(results, best) == pytest.approx(0.15 / 1.25)
    steer = share_of(results, best, "steer")
    assert (steer.gain, steer.share) == pytest.approx((0.1 / 1.25, 0.1 / 0.15))
    # Resamples of the seeds are (1,1), (1,2), (2,2): .1/.2, .1/.15 and .1/.1.
    assert (steer.low, steer.high) == pytest.approx((0.5, 1.0))
    assert share_of(results, best, "uniform").share == 0.0


def test_a_share_of_nothing_is_not_given():
    results = make_results({"static01": (-0.1, -0.2), "static02": (-0.3, -0.1), "steer": (0.1, 0.1)})
    best = best_of(gains_of(results), ["static01", "static02"], seeds=(1, 2))
    assert share_of(results, best, "steer").share is None
    assert math.isnan(bootstrap_ratio(np.array([0.1, 0.1]), np.array([0.3, -0.2]))[0])
    assert math.isnan(bootstrap_ratio(np.array([0.1]), np.array([0.3]))[0])
    assert bootstrap_ratio(np.array([0.02, 0.04]), np.array([0.04, 0.08])) == pytest.approx((0.5, 0.5))


def test_the_distance_to_the_front_by_hand():
    front = np.array([(0.06, -0.05), (0.10, -0.20)])
    assert distance_to_front(np.array((0.05, -0.10)), front) == pytest.approx(0.01)
    assert distance_to_front(np.array((0.08, -0.10)), front) == pytest.approx(-0.02)  # beyond both
    assert distance_to_front(front[0], front) == 0.0


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=5), st.floats(0, 1))
def test_a_point_raised_by_its_distance_is_on_the_front(points, drop):
    others = np.array(points)
    point = others[0] - drop
    distance = distance_to_front(point, others)
    assert distance >= drop - 1e-9
    assert distance_to_front(point + distance, others) == pytest.approx(0.0, abs=1e-9)


def test_every_policy_has_a_distance_to_the_front_of_the_other_fixed_mixtures():
    # A gain of g: mean loss 1.25 - g of 1.5, law 1.75 - g of 2.0, code 0.75 - g of 1.0, so that law is the worst.
    gains = {"static01": (0.2, 0.2), "static02": (0.1, 0.1), "steer": (0.1, 0.1), "planned": (0.15, 0.15)}
    distances = front_distances(make_results(gains), seeds=(1, 2))
    # Points (fall of the mean, worst): uniform (.1667, .125), static01 (.3, .225), static02 (.2333, .175).
    assert distances["uniform"] == pytest.approx(0.1)
    assert distances["steer"] == pytest.approx(0.05)
    assert distances["planned"] == pytest.approx(0.025)
    lone = front_distances(make_results({**gains, "planned": (0.4, 0.4)}), seeds=(1, 2))
    assert lone["planned"] < 0  # its own point is no part of the front that it is held to


def test_predicted_and_measured_means_are_compared_by_rank():
    gains = {f"static{n:02d}": (gain, gain) for n, gain in enumerate((0.1, 0.2, 0.3, 0.4), 1)}
    results = make_results(gains)
    # Measured ranks 4 3 2 1, predicted 4 3 1 2: 1 - 6 * 2 / (4 * 15) = 0.8.
    predicted = {"static01": 9.0, "static02": 8.0, "static03": 1.0, "static04": 2.0}
    assert rank_correlation(results, predicted, seeds=(1, 2)) == pytest.approx(0.8)
    assert rank_correlation(results, dict.fromkeys(gains, 1.0), seeds=(1, 2)) is None
    assert rank_correlation(results, {"static01": 1.0}, seeds=(1, 2)) is None


def test_the_section_states_the_best_mixture_its_honest_gain_and_every_share():
    gains = {**GAINS, "static03": (0.0, 0.0)}
    predicted = {"transfer, 9 steps": {"static01": 1.1, "static02": 1.0, "static03": 1.2}}
    text = "\n".join(headroom_section(make_results(gains, predicted=predicted)))
    assert text.startswith("## How much could any mixture gain here?\n")
    assert (
        "Of 3 fixed mixtures drawn at random and 1 of the runs above, `static02` (law 0.50, code 0.50) has the lowest "
        "mean loss on seeds 1, 2." in text
    )
    assert "measured on it, the best gains +12.00 % (+20.00 % on the seeds that chose it)." in text
    assert "predicted (planner transfer, 9 steps) and measured mean loss over the 3 drawn mixtures: 1.00." in text
    assert "| steer | +8.00 % | 67 % (50 to 100 %) | +7.50 |" in text
    assert "Share of the headroom that runs from a plan take: `planned` 67 %" in text
    assert "do not matter" not in text


def test_mixtures_do_not_matter_where_nothing_gains_one_percent():
    small = {"static01": (0.01, 0.01), "static02": (0.0, 0.0), "steer": (0.012, 0.012)}
    text = "\n".join(headroom_section(make_results(small)))
    assert "- Mixtures do not matter here: the headroom is under 1 %." in text
    text = "\n".join(headroom_section(make_results({**small, "steer": (0.1, 0.1)})))
    assert "No fixed mixture gains 1 % over `uniform`, but `steer` (+8.00 %) does." in text


def test_with_one_seed_the_page_warns_that_the_best_was_chosen_by_noise_too():
    text = "\n".join(headroom_section(make_results({"static01": (0.3,), "steer": (0.1,)}, seeds=(1,))))
    assert "on the one seed that chose it: too high, since the best of 1 is chosen by noise too" in text
    assert "| steer | +8.00 % | 33 % | " in text


def test_the_page_has_the_section_only_where_mixtures_were_drawn(tmp_path):
    results = make_results(output_dir=tmp_path)
    results.plan.folder.mkdir()
    text = write_page(results, command="c", versions={}).read_text()
    assert "## How much could any mixture gain here?" in text
    assert '- {plan:planned}: `{"for": "mean"}`' in text
    assert re.search(r"- 2 fixed mixtures: `constant` .* concentration 1, 2\.5 in turn .*, with seeds 1, 2", text)
    assert "| static01 |" not in text
    runs = {cell: domains for cell, domains in results.domains.items() if cell.mixture is None}
    text = write_page(replace(results, domains=runs), command="c", versions={}).read_text()
    assert "any mixture" not in text


def test_a_policy_without_a_run_on_the_measured_seeds_is_left_out_of_the_table():
    results = make_results()
    missing = {("steer", 1), ("steer", 2)}
    runs = {cell: domains for cell, domains in results.domains.items() if (cell.label, cell.seed) not in missing}
    text = "\n".join(headroom_section(replace(results, domains=runs)))
    assert "| steer |" not in text
    assert "| planned | " in text


def test_without_a_seed_of_all_fixed_mixtures_the_headroom_is_not_known():
    results = make_results()
    missing = {("uniform", 1), ("static01", 2)}
    runs = {cell: domains for cell, domains in results.domains.items() if (cell.label, cell.seed) not in missing}
    text = "\n".join(headroom_section(replace(results, domains=runs)))
    assert text.strip().endswith("Not known yet: no seed has uniform and all fixed mixtures.")
