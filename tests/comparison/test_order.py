"""The order of a comparison's runs, and what the page of an incomplete one can say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.comparison.cells import Cell, cells_of
from versatune_ds.comparison.complete_block import complete_block, missing_sentence
from versatune_ds.comparison.order import OrderEntry, in_order
from versatune_ds.comparison.plan import ComparisonPlan

RUNS = {"a": {}, "b": {}, "uniform": {}}


def make_plan(**changed):
    values = {"name": "mine", "recipe": "r.yaml", "base": {"recipe": "r.yaml"}, "runs": RUNS, "baseline": "uniform"}
    return ComparisonPlan.model_validate({**values, "seeds": (1, 2), **changed})


def names(cells):
    return [cell.run_name.replace("-seed", "") for cell in cells]


def test_by_default_runs_go_seed_by_seed_with_the_baseline_first():
    plan = make_plan()
    assert names(in_order(list(cells_of(plan)), plan.order)) == ["uniform1", "a1", "b1", "uniform2", "a2", "b2"]


def test_runs_of_the_first_entry_come_first_and_those_of_no_entry_last():
    plan = make_plan(order=[{"runs": ["b", "uniform"]}, {"seeds": [2]}])
    assert names(in_order(list(cells_of(plan)), plan.order)) == ["b1", "uniform1", "b2", "uniform2", "a2", "a1"]
    plan = make_plan(order=[{"targets": ["code"], "seeds": [1]}], targets=["law", "code"], runs={"uniform": {}})
    assert names(in_order(list(cells_of(plan)), plan.order)) == [
        "uniform-code1",
        "uniform-law1",
        "uniform-law2",
        "uniform-code2",
    ]


def test_all_drawn_mixtures_have_one_name_in_the_order():
    cells = [Cell(label="uniform", target=None, seed=1), Cell(label="static01", target=None, seed=1, mixture=())]
    assert names(in_order(cells, [OrderEntry(runs=("static",))])) == ["static011", "uniform1"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"runs": ["unifrom"]}, "order: no run 'unifrom'; .*uniform"),
        ({"runs": ["static"]}, "order: no run 'static'"),
        ({"seeds": [3]}, "order: no seed 3; the comparison has 1, 2"),
        ({"targets": ["law"]}, "order: no target 'law'"),
        ({"labels": ["a"]}, "labels"),
    ],
)
def test_an_order_of_what_the_comparison_does_not_have_is_refused(entry, message):
    with pytest.raises(ValueError, match=message):
        make_plan(order=[entry])


def cell(text):
    return Cell(label=text[:-1], target=None, seed=int(text[-1]))


def block_of(plan, *done):
    block = complete_block(plan, [cell(text) for text in done])
    return None if block is None else (list(block[0].runs), list(block[0].seeds), names(block[1]))


def test_the_page_of_an_incomplete_comparison_has_the_largest_block_without_a_gap():
    plan = make_plan()
    assert block_of(plan) is None
    assert block_of(plan, "a1", "b1") is None  # without the baseline there are no pairs
    assert block_of(plan, "uniform1", "a1", "b1", "uniform2") == (["a", "b", "uniform"], [1], ["uniform1", "a1", "b1"])
    two_by_two = ["uniform1", "a1", "b1", "uniform2", "a2"]
    assert block_of(plan, *two_by_two) == (["a", "uniform"], [1, 2], ["uniform1", "a1", "uniform2", "a2"])
    assert block_of(plan, "uniform2", "b2", "uniform1") == (["b", "uniform"], [2], ["uniform2", "b2"])
    assert block_of(plan, "uniform1", "uniform2") == (["uniform"], [1, 2], ["uniform1", "uniform2"])


def test_drawn_mixtures_are_on_the_page_if_they_have_all_seeds_that_are():
    plan = make_plan(static=2, static_seeds=1)
    drawn = [Cell(label=f"static0{n}", target=None, seed=1, mixture=(("law", 1.0),)) for n in (1, 2)]
    done = [cell("uniform1"), cell("a1"), drawn[1]]
    cut, cells = complete_block(plan, done)
    assert (cut.static, cut.static_seeds, names(cells)) == (1, 1, ["uniform1", "a1", "static021"])
    cut, cells = complete_block(plan, [cell("uniform2"), cell("a2"), drawn[0]])
    assert (cut.static, names(cells)) == (0, ["uniform2", "a2"])  # the one that is done has another seed


@given(st.sets(st.sampled_from([Cell(label=x, target=t, seed=s) for x in RUNS for t in ("x", "y") for s in (1, 2)])))
def test_every_block_has_every_pair_and_only_runs_that_are_done(done):
    block = complete_block(make_plan(targets=("x", "y")), done)
    if block is None:
        assert not any(cell.label == "uniform" for cell in done)
        return
    plan, cells = block
    assert set(cells) <= done
    assert {(c.label, c.target, c.seed) for c in cells} == {
        (x, t, s) for x in plan.runs for t in plan.targets for s in plan.seeds
    }
    assert "uniform" in plan.runs


def test_the_page_lists_what_is_missing_and_what_waits_for_others():
    cells = [cell(text) for text in ("uniform1", "a1", "uniform2", "a2")]
    assert missing_sentence(cells, done=cells, shown=cells) is None
    text = missing_sentence(cells, done=cells[:3], shown=cells[:2])
    assert text.startswith("**Incomplete**: 1 of 4 runs have no result yet: `a-seed2`. ")
    assert text.endswith("1 more are done and wait for others of their seed or policy: `uniform-seed2`.")
