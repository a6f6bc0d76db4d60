"""Complete runs with real DeepSpeed on forked ranks: losses, decisions, shares, resume and export."""

import math
import os

import numpy as np
import pytest
import torch
from ranks import run_ranks
from tiny_run import be_trained, losses_by_step, read_lines, tiny_config
from transformers import AutoModelForCausalLM, AutoTokenizer
from varlen_stand_in import install

from versatune_ds.data.prepare.domains import prepare_domains
from versatune_ds.export.run_export import export_run
from versatune_ds.model.named_model import exported_from
from versatune_ds.run_folder.checkpoint_files import complete_checkpoints
from versatune_ds.run_folder.recorded_config import recorded_config
from versatune_ds.training import loop


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def train_ranks(config, *, world_size, stop_after=None, is_fresh=False, then=lambda run: None):
    """Train on forked ranks; return what `then(run)` gives on each."""
    results = config.run.output_dir / f"results_{config.run.name}_{world_size}_{stop_after}"
    results.mkdir(parents=True)

    def work(world):
        return then(be_trained(config, world, stop_after=stop_after, is_fresh=is_fresh))

    return run_ranks(work, world_size=world_size, folder=results)


def weights_of(run):
    return {
        name: value.double().sum().item() for name, value in run.engine.deepspeed_engine.module.state_dict().items()
    }


def zero(stage):
    return f"train.deepspeed={{zero_optimization: {{stage: {stage}}}}}"


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory, cache_dir):
    """Return the uninterrupted run of a ZeRO stage on two ranks: (config, weights by rank, schedules by rank)."""
    runs = {}

    def run_of(stage):
        if stage not in runs:
            config = tiny_config(tmp_path_factory.mktemp(f"stage{stage}"), zero(stage), cache_dir=cache_dir)
            results = train_ranks(config, world_size=2, then=lambda run: (weights_of(run), run.schedule.state_dict()))
            runs[stage] = (config, *zip(*results, strict=True))
        return runs[stage]

    return run_of


@pytest.mark.slow
def test_two_ranks_have_the_same_schedule_and_write_one_history(whole_runs):
    config, _, (first, second) = whole_runs(2)
    assert first == second
    decisions = read_lines(config.run_dir / "decisions.jsonl")
    assert [(d["update"], d["decided_at_step"], d["effective_step"]) for d in decisions] == [
        (0, 0, 3), (1, 4, 7), (2, 8, 11), (3, 12, 15)
    ]  # fmt: skip
    for decision in decisions:
        weights = list(decision["weights_after"].values())
        assert min(weights) > 0
        assert sum(weights) == pytest.approx(1, abs=1e-12)
        assert set(decision["losses"]["law"]) == {"mean", "stderr", "num_loss_tokens"}
    assert decisions[1]["weights_after"] != decisions[1]["weights_before"]
    # The training losses, which tell over-fitting from forgetting, are of both ranks and of all steps since the last.
    assert "train_losses" not in decisions[0]["inputs"]
    for decision in decisions[1:]:
        assert set(decision["inputs"]["train_losses"]) == set(decision["weights_after"])
        assert all(0 < loss < 20 for loss in decision["inputs"]["train_losses"].values())


@pytest.mark.slow
def test_the_weights_used_at_a_step_are_those_of_the_decision_in_effect(whole_runs):
    config, *_ = whole_runs(2)
    decisions = read_lines(config.run_dir / "decisions.jsonl")
    lines = [line for line in read_lines(config.run_dir / "metrics.jsonl") if "domain/law/weight" in line]
    assert len(lines) == 12
    for line in lines:
        in_effect = [d for d in decisions if d["effective_step"] <= line["step"] or d["update"] == 0][-1]
        assert line["domain/law/weight"] == in_effect["weights_after"]["law"]


@pytest.mark.slow
def test_losses_and_shares_do_not_depend_on_processes_or_accumulation(tmp_path, cache_dir):
    def losses(name, world_size, *overrides):
        config = tiny_config(tmp_path, f"run.name={name}", "model.from_config.attention_dropout=0.0", *overrides,
                             cache_dir=cache_dir)  # fmt: skip
        served = train_ranks(config, world_size=world_size, then=lambda run: run.served.state_dict())
        return losses_by_step(config.run_dir), served[0]

    expected, expected_served = losses("one", 1)
    assert len(expected) == 12
    for name, world_size, overrides in (
        ("two", 2, ()),
        ("four", 4, ()),
        ("whole", 1, ("train.rows_per_micro_batch=8",)),
    ):
        found, served = losses(name, world_size, *overrides)
        assert found == pytest.approx(expected, abs=1e-5)
        assert served["num_tokens_K"] == expected_served["num_tokens_K"]
        assert served["requested_units_K"] == pytest.approx(expected_served["requested_units_K"], abs=1e-3)


@pytest.mark.slow
def test_what_was_served_is_within_one_example_of_what_was_requested(tmp_path, cache_dir):
    config = tiny_config(tmp_path, "mixture.policy=constant", cache_dir=cache_dir)
    (run,) = train_ranks(config, world_size=1, then=lambda run: run.served.state_dict())
    missing = np.abs(np.array(run["requested_units_K"]) - np.array(run["realised_units_K"]))
    assert missing.max() <= 128
    assert sum(run["realised_units_K"]) > 12 * 8 * 128 * 0.85


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_every_zero_stage_trains_to_the_same_losses(whole_runs, stage):
    losses = losses_by_step(whole_runs(stage)[0].run_dir)
    assert losses == pytest.approx(losses_by_step(whole_runs(2)[0].run_dir), abs=2e-4)
    assert losses[12] < losses[1]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "stop_after"), [(2, 1), (2, 5), (0, 7), (1, 7), (3, 7)])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, cache_dir, whole_runs, stage, stop_after):
    whole, weights, _ = whole_runs(stage)
    config = tiny_config(tmp_path, zero(stage), cache_dir=cache_dir)
    train_ranks(config, world_size=2, stop_after=stop_after)
    assert train_ranks(config, world_size=2, then=weights_of) == list(weights)
    assert losses_by_step(config.run_dir) == losses_by_step(whole.run_dir)
    assert read_lines(config.run_dir / "decisions.jsonl") == read_lines(whole.run_dir / "decisions.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "world_size", "restart"), [("wsd", 2, 4), ("constant", 1, 8)])
def test_a_finished_run_with_more_steps_equals_the_uninterrupted_longer_run_bit_for_bit(
    tmp_path, cache_dir, schedule, world_size, restart
):
    """Under wsd the short run decays from step 5 to 8, the long one from step 7 to 12."""

    def train_for(steps, name):
        config = tiny_config(
            tmp_path, f"run.name={name}", f"train.steps={steps}", f"train.learning_rate_schedule={schedule}",
            "train.decay_fraction=0.5", "train.warmup_steps=2", "checkpoint.every=4", cache_dir=cache_dir,
        )  # fmt: skip
        return config.run_dir, train_ranks(config, world_size=world_size, then=weights_of)

    whole, weights = train_for(12, "whole")
    run_dir, _ = train_for(8, "extended")
    (tmp_path / f"results_extended_{world_size}_None").rename(tmp_path / "results_of_8_steps")
    assert train_for(12, "extended")[1] == weights
    assert losses_by_step(run_dir) == losses_by_step(whole)
    assert read_lines(run_dir / "decisions.jsonl") == read_lines(whole / "decisions.jsonl")
    assert [line["step"] for line in read_lines(run_dir / "resumes.jsonl")] == [restart]
    assert (run_dir / "checkpoints" / "step_00000008.before_extension").is_dir() == (schedule == "wsd")


@pytest.mark.slow
def test_a_run_of_epochs_equals_one_of_its_steps_records_them_and_resumes(tmp_path, cache_dir, whole_runs):
    whole, weights, _ = whole_runs(2)
    # 24.2 steps are one pass over all data, so .48 of one are 11.6 steps.
    config = tiny_config(tmp_path, zero(2), "train.steps=null", "train.epochs=0.48", cache_dir=cache_dir)
    train_ranks(config, world_size=2, stop_after=7)
    recorded = recorded_config(config.run_dir).train
    assert (recorded.steps, recorded.epochs, recorded.steps_from) == (12, None, "0.48 epochs of all data")
    assert train_ranks(config, world_size=2, then=weights_of) == list(weights)
    assert losses_by_step(config.run_dir) == losses_by_step(whole.run_dir)
    assert read_lines(config.run_dir / "decisions.jsonl") == read_lines(whole.run_dir / "decisions.jsonl")


@pytest.mark.slow
def test_a_run_begun_when_sdpa_was_the_default_resumes_bit_for_bit_with_auto(tmp_path, cache_dir, whole_runs):
    whole, weights, _ = whole_runs(2)
    begun = tiny_config(tmp_path, zero(2), "model.attention=sdpa", cache_dir=cache_dir)
    train_ranks(begun, world_size=2, stop_after=7)
    config = tiny_config(tmp_path, zero(2), cache_dir=cache_dir)
    assert (begun.model.attention, config.model.attention) == ("sdpa", "auto")
    assert train_ranks(config, world_size=2, then=weights_of) == list(weights)
    assert losses_by_step(config.run_dir) == losses_by_step(whole.run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_whose_attention_has_no_mask_has_the_losses_of_one_whose_has(tmp_path, cache_dir, stage):
    """Over a stand-in of the GPU's kernel: loader, bounds, training, validation."""
    found = {}
    for attention in ("sdpa", "varlen"):
        config = tiny_config(
            tmp_path, zero(stage), f"run.name={attention}", f"model.attention={attention}",
            "model.from_config.attention_dropout=0.0", cache_dir=cache_dir,
        )  # fmt: skip

        def work(world, config=config):
            with pytest.MonkeyPatch.context() as patch:
                install(patch)
                be_trained(config, world)

        run_ranks(work, world_size=2, folder=tmp_path)
        decisions = read_lines(config.run_dir / "decisions.jsonl")
        held_out = {name: loss["mean"] for name, loss in decisions[-1]["losses"].items()}
        found[attention] = losses_by_step(config.run_dir), held_out
        assert "varlen" not in (config.run_dir / "model" / "config.json").read_text()
    for left, right in zip(*found.values(), strict=True):
        assert left == pytest.approx(right, rel=1e-5)


@pytest.mark.slow
def test_a_run_killed_between_checkpoints_resumes_from_the_last_complete_one(tmp_path, cache_dir, whole_runs):
    config = tiny_config(tmp_path, zero(2), cache_dir=cache_dir)

    def die_in_step_eight(world):
        plan_data = loop.plan_data
        loop.plan_data = lambda run, *, step: os._exit(9) if step == 10 else plan_data(run, step=step)
        be_trained(config, world)

    with pytest.raises(AssertionError, match="exited without a result"):
        run_ranks(die_in_step_eight, world_size=2, folder=tmp_path)
    assert [path.name for path in complete_checkpoints(config.run_dir)] == ["step_00000005"]
    train_ranks(config, world_size=2)
    assert losses_by_step(config.run_dir) == losses_by_step(whole_runs(2)[0].run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_exported_folder_loads_and_gives_the_runs_validation_losses(tmp_path, cache_dir, whole_runs, stage):
    config, *_ = whole_runs(stage)
    folder = export_run(config.run_dir, output=tmp_path / "exported")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    data = prepare_domains(config.data, tokenizer=AutoTokenizer.from_pretrained(folder), cache_dir=cache_dir)
    last = read_lines(config.run_dir / "decisions.jsonl")[-1]
    for name, shards in zip(data.domain_set, data.valid, strict=True):
        loss_sum, num_loss_tokens = sum_losses(model, shards)
        assert num_loss_tokens == last["losses"][name]["num_loss_tokens"]
        assert math.isclose(loss_sum / num_loss_tokens, last["losses"][name]["mean"], abs_tol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_from_a_saved_folder_starts_with_that_folders_losses(tmp_path, cache_dir, whole_runs, stage):
    folder = export_run(whole_runs(2)[0].run_dir, output=tmp_path / "exported")
    assert exported_from(str(folder)) == "the run tiny, after step 12"
    config = tiny_config(
        tmp_path, zero(stage), "model.from_config=null", f"model.name_or_path={folder}", "train.steps=2",
        cache_dir=cache_dir,
    )  # fmt: skip
    train_ranks(config, world_size=2)
    start = read_lines(config.run_dir / "decisions.jsonl")[0]["losses"]
    end = read_lines(whole_runs(2)[0].run_dir / "decisions.jsonl")[-1]["losses"]
    for name in start:
        assert start[name]["mean"] == pytest.approx(end[name]["mean"], abs=2e-5)
    # Tokenizer and chat template are the export's, although the recipe names none.
    before, after = (AutoTokenizer.from_pretrained(path) for path in (folder, config.run_dir / "tokenizer"))
    assert (after.get_vocab(), after.chat_template) == (before.get_vocab(), before.chat_template)


def sum_losses(model, shards):
    """Return (loss sum, loss tokens) of a domain by transformers alone, one unpacked example at a time."""
    loss_sum, num_loss_tokens = 0.0, 0
    for index in range(shards.num_examples):
        input_ids, is_loss = shards.read(index)
        ids = torch.tensor(np.array(input_ids, dtype=np.int64))[None]
        with torch.no_grad():
            losses = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
        bears_loss = torch.tensor(np.array(is_loss))[1:]
        loss_sum += losses[bears_loss].double().sum().item()
        num_loss_tokens += int(bears_loss.sum())
    return loss_sum, num_loss_tokens
