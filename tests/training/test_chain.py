"""The complete method from its recipes: each command writes its file where the next one's recipe reads it."""

import json
import re
import shlex
from pathlib import Path

import pytest
from ranks import run_ranks
from references import measure
from tiny_run import ROOT, be_trained, read_lines

from versatune_ds.cli import parse
from versatune_ds.config import load_config
from versatune_ds.domains import DomainSet
from versatune_ds.export.run_export import export_run
from versatune_ds.knowledge.detect_recipe import detect_recipe
from versatune_ds.mixture.settings import guarded_start
from versatune_ds.planning.plan_command import PlanOptions, plan_recipe
from versatune_ds.report.planned import plan_of, plan_rows
from versatune_ds.report.series import read_series
from versatune_ds.training.run_records import replay_run

BASE = ROOT / "recipes" / "base.yaml"
CHAIN = ROOT / "recipes" / "chain"
MODES = ("versatune", "expansion")
COMMANDS = re.findall(r"^# +versatune (.*?)(?:  +#.*)?$", (CHAIN / "versatune.yaml").read_text(), flags=re.MULTILINE)

SMALL = ("data.synthetic={num_rows: 60, num_valid_rows: 8, num_test_rows: 2}", "data.row_tokens=128")
TINY_MODEL = [
    f"model.from_config.{key}={value}"
    for key, value in {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }.items()
]  # fmt: skip
TRAIN = ("train.rows_per_batch=8", "train.rows_per_micro_batch=8")
DETECT = (
    "detect.num_sequences=16", "detect.rounds=1", "detect.rows_per_domain=40", "detect.sampling.max_new_tokens=16"
)  # fmt: skip
UPDATES = ("mixture.update_every=2", "mixture.sigma_interval_steps=2", "train.steps=4")


PRIOR, PLAN = Path("runs/chain-prior.json"), Path("runs/chain_versatune-plan.json")


def test_the_recipe_lists_the_commands_and_each_reads_what_the_one_before_wrote():
    parsed = [parse(shlex.split(command)) for command in COMMANDS]
    assert [command.split()[0] for command in COMMANDS] == [
        "train", "export", "detect", "reference", "plan", "train", "train", "train"
    ]  # fmt: skip
    base = load_config(ROOT / parsed[0].recipe)
    assert parsed[1].run_dir == base.run_dir
    for chained in parsed[2:]:
        config = load_config(ROOT / chained.recipe, chained.overrides)
        assert Path(config.model.name_or_path) == base.run_dir / "export"
        assert config.mixture.prior == (PLAN if "run.name=chain_planned" in chained.overrides else PRIOR)
        assert config.default_output("prior") == config.mixture.prior
        assert config.default_output("reference") == config.mixture.reference == Path("runs/chain-reference.json")


def test_the_two_modes_differ_in_name_and_mixture_alone():
    rest = [
        load_config(CHAIN / f"{mode}.yaml").model_dump(exclude={"run", "mixture", "detect", "reference"})
        for mode in MODES
    ]
    assert rest[0] == rest[1]


@pytest.mark.slow
def test_detect_reference_plan_and_both_modes_run_one_after_another_without_naming_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = (*SMALL, f"data.cache_dir={tmp_path / 'cache'}", *TRAIN)
    base = load_config(BASE, [*small, *TINY_MODEL, "model.tokenizer_vocab_size=512", "train.steps=2"])
    run_ranks(lambda world: be_trained(base, world).step, world_size=1, folder=tmp_path)
    export_run(base.run_dir, output=base.run_dir / "export")

    recipe = CHAIN / "versatune.yaml"
    outputs = run_ranks(
        lambda world: detect_recipe(recipe, [*small, *DETECT], processes=1, output=None), world_size=1, folder=tmp_path
    )
    assert "prior  runs/chain-prior.json" in outputs[0]
    steps = ("reference.steps=8", "reference.evaluate_every=8")  # further than the mixed runs of 4 come
    assert measure(load_config(recipe, [*small, *UPDATES, *steps]), folder=tmp_path / "ranks") == [0]

    # A plan from what each domain did to the others; one of the modes starts from it.
    plan, text = plan_recipe(recipe, [*small, *UPDATES], options=PlanOptions())
    assert f"plan   {PLAN}" in text
    assert {"prior", "uniform", "proportional", "chosen"} <= {point["label"] for point in plan.front}
    priors = {"versatune": plan.weights, "expansion": json.loads(PRIOR.read_text())["weights"]}
    losses = json.loads(Path("runs/chain-reference.json").read_text())["losses"]
    for mode in MODES:
        prior, path = priors[mode], PLAN if mode == "versatune" else PRIOR
        config = load_config(CHAIN / f"{mode}.yaml", [*small, *UPDATES, f"mixture.prior={path}"])
        run_ranks(lambda world, config=config: be_trained(config, world).step, world_size=1, folder=tmp_path)
        baseline, *updates = read_lines(config.run_dir / "decisions.jsonl")
        domain_set = DomainSet(tuple(prior))
        start_K = guarded_start(config.mixture, domain_set.from_dict(prior, what="prior"), domain_set=domain_set)
        # No domain starts below the floor.
        assert baseline["weights_before"] == pytest.approx(domain_set.to_dict(start_K))
        assert {name: values["reference_loss"] for name, values in baseline["signals"].items()} == losses
        assert len(updates) == 2
        assert updates[-1]["weights_after"] != baseline["weights_before"], updates[-1]["reason"]
        assert "All 3 decisions are the recorded ones" in replay_run(config.run_dir).text
    # The run keeps its plan, and its report has predicted beside measured losses.
    series = read_series(Path("runs/chain_versatune"))
    assert series.plan == json.loads(PLAN.read_text())
    *rows, mean = plan_rows(series, plan_of(series))
    assert [row[4] for row in rows] == [f"{plan.predicted[row[0]]['loss']:.4f}" for row in rows]
    assert all(float(row[6]) > 0 for row in rows)
    assert mean[0] == f"mean of {len(rows)}"
    assert not Path("runs/chain_expansion/plan.json").exists()
