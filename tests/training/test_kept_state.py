"""A trainer loses nothing: random kills, other numbers of processes, changed data and settings, full disks, NaN."""

import errno
import json
import math
import os
import signal
import threading
import time
from itertools import count

import pytest
import torch
from collective_events import record_collectives
from kills import Kill, arm, random_kill
from ranks import run_ranks, start_ranks
from tiny_run import be_trained, losses_by_step, read_lines, tiny_config

from versatune_ds.engine.checkpoint import open_weights
from versatune_ds.engine.engine import Engine
from versatune_ds.run_folder.checkpoint_files import complete_checkpoints, read_state
from versatune_ds.training import assemble, loop
from versatune_ds.training.run_records import replay_run
from versatune_ds.training.signals import StopSignals

NO_DROPOUT = "model.from_config.attention_dropout=0.0"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def train(tmp_path, cache_dir):
    """Return a function that trains a run of tmp_path on forked ranks and returns what `then(run)` gives on each."""
    numbers = count()

    def train(name, *overrides, world_size=2, before=lambda world: None, then=lambda run: None, **options):
        config = tiny_config(tmp_path, f"run.name={name}", *overrides, cache_dir=cache_dir)
        folder = tmp_path / f"results_{next(numbers)}"
        folder.mkdir()

        def work(world):
            before(world)
            return then(be_trained(config, world, **options))

        return config, run_ranks(work, world_size=world_size, folder=folder)

    return train


def zero(stage):
    return f"train.deepspeed={{zero_optimization: {{stage: {stage}}}}}"


def metrics_of(run_dir):
    """Return the metrics that do not depend on the time of day."""
    lines = read_lines(run_dir / "metrics.jsonl")
    return [{key: value for key, value in line.items() if not key.startswith("perf/")} for line in lines]


def assert_equal_bit_for_bit(left, right):
    """Compare weights, state, decisions and metrics of two runs' folders."""
    assert metrics_of(left) == metrics_of(right)
    assert (left / "decisions.jsonl").read_bytes() == (right / "decisions.jsonl").read_bytes()
    first, second = complete_checkpoints(left)[0], complete_checkpoints(right)[0]
    assert read_state(first) == read_state(second)
    weights, others = open_weights(first), open_weights(second)
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name].contiguous(), others[name].contiguous()) for name in weights)


def train_and_kill(config, kill, *, folder, before=lambda world: None):
    """Train on two forked ranks until the kill; the surviving rank notices, and ends by itself."""
    folder.mkdir()

    def work(world):
        before(world)
        arm(kill, rank=world.rank)
        be_trained(config, world)

    processes = start_ranks(work, world_size=2, folder=folder)
    for process in processes:
        process.join(timeout=120)
    killed = [rank for rank, process in enumerate(processes) if process.exitcode == -9]
    assert killed == list(kill.victims), f"{kill}: exit codes {[process.exitcode for process in processes]}"


def test_ten_random_kills_change_nothing(tmp_path, train):
    settings = ("train.steps=30", "checkpoint.every=2", "mixture.update_every=5")
    uninterrupted, _ = train("whole", *settings)
    config = tiny_config(tmp_path, "run.name=killed", *settings, cache_dir=uninterrupted.data.cache_dir)
    seen = set()
    for seed in range(10):
        kill = random_kill(seed, world_size=2)
        seen.add((kill.moment, len(kill.victims)))
        train_and_kill(config, kill, folder=tmp_path / f"kill_{seed}")
    assert {moment for moment, _ in seen} == {"step", "writing", "naming"}
    assert {num_victims for _, num_victims in seen} == {1, 2}
    train("killed", *settings)
    assert_equal_bit_for_bit(config.run_dir, uninterrupted.run_dir)
    assert not list((config.run_dir / "checkpoints").glob("*.*"))


def delay_writes(*, until_planned):
    """Return what lets every rank's background save of step 5 begin to write once a later step is planned."""

    def delay(world):
        usual, plan_data, is_planned = torch.save, loop.plan_data, threading.Event()

        def save(values, stream):
            if "step_00000005" in stream.name:
                assert is_planned.wait(60), "training waits for the save"
            if "step_00000010" in stream.name and world.rank == 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            usual(values, stream)

        def plan(run, *, step):
            if step == until_planned:
                is_planned.set()
            plan_data(run, step=step)

        torch.save, loop.plan_data = save, plan

    return delay


def test_training_continues_during_a_background_save_and_kills_then_change_nothing(tmp_path, train):
    uninterrupted, _ = train("whole", "checkpoint.every=5")
    # Step 5 is written while steps 6 to 8 are trained; step 10 cannot be written; step 12 is waited for.
    background = ("checkpoint.background=true", "checkpoint.every=5")
    config, _ = train("background", *background, before=delay_writes(until_planned=10))
    assert [path.name for path in complete_checkpoints(config.run_dir)] == ["step_00000012", "step_00000005"]
    assert_equal_bit_for_bit(config.run_dir, uninterrupted.run_dir)

    config = tiny_config(tmp_path, "run.name=killed", *background, cache_dir=uninterrupted.data.cache_dir)
    both = {"victims": (0, 1), "moment": "step", "delay_seconds": 0.0}
    kills = [
        Kill(**both, num_steps=8),  # steps after 5 are trained, while it is being written
        Kill(victims=(1,), moment="writing", num_steps=0, delay_seconds=0.0),
        Kill(victims=(0,), moment="naming", num_steps=0, delay_seconds=0.0),
    ]
    for i, kill in enumerate(kills):
        delay = delay_writes(until_planned=12) if i == 0 else lambda world: None
        train_and_kill(config, kill, folder=tmp_path / f"kill_{i}", before=delay)
        assert complete_checkpoints(config.run_dir) == []
    train("killed", *background)
    assert_equal_bit_for_bit(config.run_dir, uninterrupted.run_dir)
    assert not list((config.run_dir / "checkpoints").glob("*.*"))


def test_the_number_of_processes_and_sequence_parallel_may_change_from_start_to_start(train):
    """Losses, held-out ones included, decisions and served tokens are those of two processes with complete rows."""
    settings = (NO_DROPOUT, "train.steps=8")
    uninterrupted, (served, _) = train("whole", *settings, then=lambda run: run.served.state_dict())
    for world_size, num_slices, stop_after in ((2, 1, 2), (4, 2, 4), (1, 1, 6), (2, 2, None)):
        config, results = train(
            "elastic", *settings, f"train.sequence_parallel={num_slices}", world_size=world_size, stop_after=stop_after,
            then=lambda run: run.served.state_dict(),
        )  # fmt: skip
    assert losses_by_step(config.run_dir) == pytest.approx(losses_by_step(uninterrupted.run_dir), abs=1e-5)
    assert results[0] == served
    expected = read_lines(uninterrupted.run_dir / "decisions.jsonl")
    for decision, other in zip(read_lines(config.run_dir / "decisions.jsonl"), expected, strict=True):
        assert decision["weights_after"] == pytest.approx(other["weights_after"], abs=1e-5)
    resumes = read_lines(config.run_dir / "resumes.jsonl")
    assert [(line["step"], line["world_size"]) for line in resumes] == [(2, 4), (4, 1), (6, 2)]
    assert resumes[0]["changed"] == {"world_size": [2, 4], "sequence_parallel": [1, 2]}
    assert sorted(path.name for path in (config.run_dir / "checkpoints").iterdir()) == [
        "latest", "step_00000006", "step_00000008"
    ]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "world_size"), [(1, 2, 2), (3, 3, 1), (0, 0, 1)])
def test_a_stage_and_number_of_processes_that_deepspeed_can_convert_give_the_same_losses(
    train, before, after, world_size
):
    settings = (NO_DROPOUT, "train.steps=6")
    uninterrupted, _ = train("whole", zero(before), *settings)
    train("changed", zero(before), *settings, stop_after=3)
    config, _ = train("changed", zero(after), *settings, world_size=world_size)
    assert losses_by_step(config.run_dir) == pytest.approx(losses_by_step(uninterrupted.run_dir), abs=1e-5)


@pytest.mark.parametrize("less", ["model.freeze=['*embed_tokens*']", "model.lora={rank: 2}"])
def test_a_model_trained_in_part_resumes_from_a_converted_checkpoint(train, less):
    settings = (NO_DROPOUT, "train.steps=6", less)
    uninterrupted, _ = train("whole", *settings)
    train("changed", *settings, stop_after=3)
    config, _ = train("changed", *settings, world_size=1)
    assert losses_by_step(config.run_dir) == pytest.approx(losses_by_step(uninterrupted.run_dir), abs=1e-5)


def test_changed_settings_of_the_mixture_are_kept_for_replaying_the_decisions_they_made(train):
    config, _ = train("changed", stop_after=6)
    train("changed", "mixture.sigma=0.5")
    replayed = replay_run(config.run_dir)
    assert [d.decided_at_step for d in replayed.recorded] == [0, 4, 8, 12]
    assert replayed.replayed == replayed.recorded
    assert (config.run_dir / "config_until_step_00000006.yaml").is_file()
    other = replay_run(config.run_dir, ["mixture.sigma=1.0"])
    assert [new.digest != old.digest for new, old in zip(other.replayed, other.recorded, strict=True)] == [
        False, True, True, True
    ]  # fmt: skip


def test_a_domain_with_changed_data_restarts_where_the_recipe_allows_it(train):
    rows = "data.synthetic={num_rows: 60, num_valid_rows: 8, num_test_rows: 2, seed: 9}"
    train("changed", stop_after=6)
    with pytest.raises(AssertionError, match=r"ValueError: .*data of .* changed since .*; restore the earlier files"):
        train("changed", rows)
    allowed = "resume.allow=[data, tokenizer]"
    _, (state, _) = train("changed", rows, allowed, then=lambda run: run.loader.state_dict(run.step))
    _, (uninterrupted, _) = train("whole", rows, then=lambda run: run.loader.state_dict(run.step))
    assert state["num_examples"] == uninterrupted["num_examples"]
    assert 0 < sum(state["draws"]) < sum(uninterrupted["draws"])  # six steps of twelve


def test_a_full_disk_loses_one_checkpoint_and_at_the_last_step_is_an_error(train):
    def fill_at(*steps):
        def fill(world):
            usual = torch.save
            is_full = lambda stream: any(f"step_{step:08d}" in stream.name for step in steps)  # noqa: E731
            full = OSError(errno.ENOSPC, "No space left on device")

            def save(values, stream):
                if world.rank == 1 and is_full(stream):
                    raise full
                usual(values, stream)

            torch.save = save

        return fill

    uninterrupted, _ = train("whole")
    config, _ = train("once", before=fill_at(5))
    assert [path.name for path in complete_checkpoints(config.run_dir)] == ["step_00000012", "step_00000010"]
    assert_equal_bit_for_bit(config.run_dir, uninterrupted.run_dir)
    with pytest.raises(AssertionError, match=r"step 12 could not be saved .*newest complete .* is step_00000010"):
        train("end", before=fill_at(12))
    config, _ = train("end")
    assert_equal_bit_for_bit(config.run_dir, uninterrupted.run_dir)


def test_a_signal_during_a_save_or_a_validation_stops_the_run_cleanly(train):
    def signalled(world):
        signals = StopSignals()
        signals.install()
        signals.begin_steps()
        assemble.StopSignals = lambda: signals
        save, measure = torch.save, loop.measure_losses

        def send_signal():
            if world.rank == 1 and signals.received is None:
                os.kill(os.getpid(), signal.SIGUSR1)
                while signals.received is None:
                    time.sleep(0.01)

        def save_and_send_signal(values, stream):
            if "step_00000005" in stream.name:
                send_signal()
            save(values, stream)

        def measure_and_send_signal(run):
            if run.step == 8:
                send_signal()
            return measure(run)

        torch.save, loop.measure_losses = save_and_send_signal, measure_and_send_signal

    uninterrupted, _ = train("whole")
    steps = [train("signalled", before=signalled, then=lambda run: run.step)[1] for _ in range(2)]
    assert steps == [[6, 6], [9, 9]]  # after the step that follows the save, the validation
    config, _ = train("signalled")
    assert_equal_bit_for_bit(config.run_dir, uninterrupted.run_dir)


def test_a_step_without_an_update_or_a_save_blocks_in_no_collective_call_of_ours(train):
    events = []  # of each rank, in its process
    settings = ("train.steps=7", "mixture.update_every=6", "checkpoint.every=6", "monitor.log_every=6")
    before, then = lambda world: record_collectives(events), lambda run: events
    _, results = train("counted", *settings, before=before, then=then)
    for found in results:
        # Step 1 begins with the measurement before training; steps 6 and 7 end with a measurement and a save.
        first = found.index("step")
        one_step = ["started", "step", "stepped", "waited"]  # the flags, which travel while the step runs
        assert found[first - 1 : first + 19] == one_step * 5
        assert ["started", "waited"] in [found[i : i + 2] for i in range(first)]  # the measurement: calls that block


def spoil(factors, *, rank=1):
    """Return a hook that multiplies a rank's training losses of given steps, {step: factor}."""

    def before(world):
        train_step = Engine.train_step

        def spoiled(self, micro_batches, *, step, is_refused):
            module = self.deepspeed_engine.module
            factor = factors.get(step, 1.0) if world.rank == rank else 1.0
            usual = type(module).forward

            def forward(**inputs):
                losses = usual(module, **inputs)
                return losses._replace(loss_sum=losses.loss_sum * factor)

            module.forward = forward
            try:
                return train_step(self, micro_batches, step=step, is_refused=is_refused)
            finally:
                del module.forward

        Engine.train_step = spoiled

    return before


def observe(run):
    state = run.engine.deepspeed_engine.module.state_dict()
    return run.served.state_dict(), {name: value.double().sum().item() for name, value in state.items()}


@pytest.mark.parametrize("stage", [0, 3])  # a spike is refused with NaN under stage 2
def test_a_step_that_is_nan_on_one_rank_is_skipped_on_all_and_the_data_continue(train, stage):
    settings = (zero(stage), "train.steps=6", "mixture.update_every=50", "checkpoint.every=2")
    _, clean = train("clean", *settings, then=observe)
    bad = {3: math.nan, 4: math.inf}
    config, spoiled = train("spoiled", *settings, before=spoil(bad), then=observe)
    lines = {line["step"]: line for line in read_lines(config.run_dir / "metrics.jsonl") if "train/loss" in line}
    assert [step for step, line in lines.items() if line["train/loss"] is None] == [3, 4]
    assert lines[6]["train/num_skipped_steps"] == 2
    assert spoiled[0][0] == clean[0][0]  # the same data
    assert spoiled[0][1] == spoiled[1][1]  # the same weights on both ranks
    train("resumed", *settings, before=spoil(bad), stop_after=3)
    assert train("resumed", *settings, before=spoil(bad), then=observe)[1] == spoiled
    with pytest.raises(AssertionError, match=r"steps 3 to 4: 2 in a row .* Last good checkpoint: step_00000002\."):
        train("stopped", *settings, "train.max_bad_steps=2", before=spoil(bad))


def test_a_loss_spike_is_skipped_where_spike_factor_is_set(train):
    settings = ("train.steps=11", "mixture.update_every=50", "train.spike_factor=3")
    config, _ = train("spike", *settings, before=spoil({10: 100.0}))
    losses = losses_by_step(config.run_dir)
    assert [step for step, loss in losses.items() if loss is None] == [10]
    state = json.loads((complete_checkpoints(config.run_dir)[0] / "versatune.json").read_text())
    assert state["bad_steps"]["num_skipped"] == 1
