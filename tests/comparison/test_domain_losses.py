"""Losses by domain in nats and bits, by hand."""

from dataclasses import replace

from versatune_ds.comparison.cells import cells_of
from versatune_ds.comparison.plan import BaseModelPlan, ComparisonPlan
from versatune_ds.comparison.results_page.domain_losses import losses_section
from versatune_ds.comparison.results_page.results import Results

BASE = {"law": {"loss": 2.0, "bits_per_byte": 0.8}, "code": {"loss": 1.0, "bits_per_byte": 0.4}}
AFTER = {
    1: {"law": {"loss": 1.5, "bits_per_byte": 0.6}, "code": {"loss": 1.0, "bits_per_byte": 0.4}},
    2: {"law": {"loss": 1.3, "bits_per_byte": 0.5}, "code": {"loss": 1.2, "bits_per_byte": 0.5}},
}


def make_results(base=BASE, after=AFTER):
    plan = ComparisonPlan(
        name="c", recipe="r", base=BaseModelPlan(recipe="r"), runs={"a|b": {}, "missing": {}}, seeds=(1, 2),
        baseline="a|b",
    )  # fmt: skip
    made = {cell: after[cell.seed] for cell in cells_of(plan) if cell.label == "a|b"}
    return Results(plan=plan, base=base, domains=made, split="test", weights={})


def test_nats_and_bits_stand_beside_each_other_with_the_base_model_first():
    text = losses_section(make_results())
    assert text[0] == "## By domain: loss on test rows, nats a token / bits a byte"
    assert text[2].splitlines() == [
        "| policy | law | code | mean over domains |",
        "|---|---:|---:|---:|",
        "| base model | 2.0000 / 0.8000 | 1.0000 / 0.4000 | 1.5000 / 0.6000 |",
        r"| a\|b | 1.4000 / 0.5500 | 1.1000 / 0.4500 | 1.2500 / 0.5000 |",
    ]


def test_results_of_early_versions_have_nats_alone():
    nats = {name: {"loss": numbers["loss"]} for name, numbers in BASE.items()}
    text = losses_section(make_results(base=nats))
    assert text[0].endswith("rows, nats a token")
    assert text[2].splitlines()[-1] == r"| a\|b | 1.4000 | 1.1000 | 1.2500 |"
    old_run = {seed: {name: {"loss": n["loss"]} for name, n in domains.items()} for seed, domains in AFTER.items()}
    mixed = replace(make_results(), domains=make_results(after=old_run).domains)
    assert losses_section(mixed)[2].splitlines()[-1] == r"| a\|b | 1.4000 / - | 1.1000 / - | 1.2500 / - |"
