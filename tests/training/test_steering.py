"""What steers the mixture: held-out rows, measurements within a budget, training losses; exact after a resume."""

import itertools
import json

import pytest
import torch
from plans import plan_content
from ranks import run_ranks
from tiny_run import inputs_besides_losses, losses_by_step, read_lines, tiny_config

from versatune_ds.run_folder.checkpoint_files import complete_checkpoints
from versatune_ds.training.assemble import assemble_run
from versatune_ds.training.loop import measure_before_training, train
from versatune_ds.training.run_records import explain_run, replay_run
from versatune_ds.training.signals import Agreement

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def train_ranks(config, *, stop_after=None, then=lambda run: None):
    """Train on two ranks whose clock, on rank 0, counts 100 s a step and 1 s each time it is read."""
    results = config.run.output_dir / f"results_{stop_after}_{config.run_dir.is_dir()}"
    results.mkdir(parents=True)

    def work(world):
        run = assemble_run(config, world=world, device=torch.device("cpu"), is_fresh=False)
        reads = itertools.count()
        run.updates.clock = lambda: 100.0 * run.step * (not world.rank) + next(reads)
        if stop_after is not None:
            run.stop_signals.agreed = lambda: Agreement(is_stopped=run.step >= stop_after, is_save_due=False)
        measure_before_training(run)
        train(run)
        run.loader.close()
        run.monitor.finish(exit_code=0)
        return then(run)

    return run_ranks(work, world_size=2, folder=results)


def decisions_of(config):
    return read_lines(config.run_dir / "decisions.jsonl")


def assert_same_run(config, uninterrupted):
    assert decisions_of(config) == decisions_of(uninterrupted)
    assert losses_by_step(config.run_dir) == losses_by_step(uninterrupted.run_dir)
    ends = [
        json.loads((complete_checkpoints(c.run_dir)[0] / "versatune.json").read_text()) for c in (config, uninterrupted)
    ]
    assert ends[0] == ends[1]


HELD_OUT = (
    "data.synthetic.num_valid_rows=24", "validation.target_standard_error=0.01", "validation.min_examples_per_domain=3",
    "validation.max_share=0.001", "train.steps=16",
)  # fmt: skip


@pytest.fixture(scope="module")
def held_out(tmp_path_factory, cache_dir):
    """Return a run that chooses its held-out rows and measures them seldom, and what each rank measured at its end."""
    config = tiny_config(tmp_path_factory.mktemp("held_out"), *HELD_OUT, cache_dir=cache_dir)
    return config, train_ranks(
        config, then=lambda run: (run.validation.state_dict(), run.validation.loader.num_examples)
    )


def test_all_ranks_keep_the_rows_that_the_first_measurement_requires(held_out):
    config, (first, second) = held_out
    assert first == second
    chosen = first[0]["num_chosen"]
    assert first[1] == sum(chosen)
    assert min(chosen) >= 3
    assert sum(chosen) < 6 * 24
    tokens = [{name: loss["num_loss_tokens"] for name, loss in d["losses"].items()} for d in decisions_of(config)]
    assert all(counts == tokens[0] for counts in tokens)  # the baseline too is of the rows that were kept
    assert decisions_of(config)[1]["signals"]["law"]["change_stderr"] is not None


def test_a_run_measures_less_often_where_measuring_takes_more_than_its_share(held_out):
    config, _ = held_out
    # About 402 s of four steps and 1 s of measuring: 1 * 0.999 / (0.001 * 402) = 2.5, so every third interval.
    assert [(d["decided_at_step"], inputs_besides_losses(d)) for d in decisions_of(config)] == [
        (0, {}), (4, {"interval_stretch": 3}), (16, {"interval_stretch": 3})
    ]  # fmt: skip
    assert "interval_stretch=3" in explain_run(config.run_dir)


@pytest.mark.parametrize("stop_after", [6, 13])
def test_a_run_stopped_between_two_measurements_equals_the_uninterrupted_one(tmp_path, cache_dir, held_out, stop_after):
    config = tiny_config(tmp_path, *HELD_OUT, cache_dir=cache_dir)
    train_ranks(config, stop_after=stop_after)
    assert train_ranks(config, then=lambda run: run.validation.loader.num_examples) == [held_out[1][0][1]] * 2
    assert_same_run(config, held_out[0])


TRAIN = ("mixture.signal=train",)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache_dir):
    config = tiny_config(tmp_path_factory.mktemp("trained"), *TRAIN, cache_dir=cache_dir)
    train_ranks(config)
    return config


def test_the_losses_of_batches_since_the_last_update_steer_the_mixture(trained):
    decisions = decisions_of(trained)
    assert [d["inputs"] for d in decisions] == [{}, *[{"signal": "train"}] * 3]
    lines = {line["step"]: line for line in read_lines(trained.run_dir / "metrics.jsonl") if "train/loss" in line}
    for decision in decisions[1:]:
        steps = [lines[step] for step in range(decision["decided_at_step"] - 3, decision["decided_at_step"] + 1)]
        for name, loss in decision["losses"].items():
            means = [step[f"domain/{name}/train_loss"] for step in steps if f"domain/{name}/train_loss" in step]
            assert min(means) <= loss["mean"] <= max(means)
    assert decisions[1]["weights_after"] != decisions[1]["weights_before"]


def test_held_out_losses_are_measured_only_before_the_first_step_and_after_the_last(trained):
    lines = read_lines(trained.run_dir / "metrics.jsonl")
    assert [line["step"] for line in lines if "domain/law/loss" in line] == [0, 12]


def test_a_run_steered_by_training_losses_and_stopped_within_an_interval_equals_the_uninterrupted_one(
    tmp_path, cache_dir, trained
):
    config = tiny_config(tmp_path, *TRAIN, cache_dir=cache_dir)
    train_ranks(config, stop_after=6)
    train_ranks(config)
    assert_same_run(config, trained)


STEER = (
    "mixture.policy=steer",
    "mixture.prior={code: 0.5, finance: 0.1, general: 0.1, law: 0.1, medicine: 0.1, science: 0.1}",
    "mixture.reference={code: 1, finance: 2, general: 3, law: 4, medicine: 5, science: 5.5}",
)  # fmt: skip


@pytest.fixture(scope="module")
def steered(tmp_path_factory, cache_dir):
    config = tiny_config(tmp_path_factory.mktemp("steered"), *STEER, cache_dir=cache_dir)
    train_ranks(config)
    return config


def test_steer_decides_on_the_measurement_before_training_and_its_weights_apply_from_step_three(steered):
    first, second = decisions_of(steered)[:2]
    assert (first["update"], first["effective_step"]) == (0, 3)
    assert first["weights_before"]["code"] == pytest.approx((0.5 + 1 / 6) / 2)
    assert first["weights_after"]["finance"] > first["weights_before"]["finance"]
    assert second["weights_before"] == first["weights_after"]
    requested = {line["step"]: line for line in read_lines(steered.run_dir / "metrics.jsonl") if "train/loss" in line}
    assert requested[2]["domain/code/weight"] == pytest.approx(first["weights_before"]["code"])
    assert requested[3]["domain/code/weight"] == pytest.approx(first["weights_after"]["code"])


@pytest.mark.parametrize("stop_after", [2, 6])
def test_a_steered_run_that_is_stopped_equals_the_uninterrupted_one(tmp_path, cache_dir, steered, stop_after):
    config = tiny_config(tmp_path, *STEER, cache_dir=cache_dir)
    train_ranks(config, stop_after=stop_after)
    train_ranks(config)
    assert_same_run(config, steered)


@pytest.mark.parametrize("name", ["held_out", "trained", "steered"])
def test_a_replay_repeats_the_runs_decisions(request, name):
    given = request.getfixturevalue(name)
    config = given[0] if isinstance(given, tuple) else given
    assert "decisions are the recorded ones, digest for digest." in replay_run(config.run_dir).text


def test_a_run_that_follows_a_plan_records_it_across_a_resume_and_replays_from_its_own_copy(tmp_path, cache_dir):
    names = ("code", "finance", "general", "law", "medicine", "science")
    plan = plan_content(names, bounds=dict.fromkeys(names, -0.5))  # which no domain meets so soon
    plan["track"] = [
        {"fraction": f, "losses": dict.fromkeys(names, 4 - f / 2), "stderrs": dict.fromkeys(names, 0.0)} for f in (0, 1)
    ]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    config = tiny_config(tmp_path, *STEER, f"mixture.prior={path}", cache_dir=cache_dir)
    train_ranks(config, stop_after=6)
    train_ranks(config)
    path.unlink()
    first, *_, last = decisions_of(config)
    assert first["signals"]["law"]["track_loss"] == pytest.approx(first["losses"]["law"]["mean"])
    # At the end 3.5 / 4 of the first loss; the bound is as wide as the plan's prediction, a fall by an eighth.
    assert last["signals"]["law"]["track_loss"] == pytest.approx(0.875 * first["losses"]["law"]["mean"])
    assert any(text.startswith("plan bounds: would end at") for text in last["acted"])
    assert "decisions are the recorded ones, digest for digest." in replay_run(config.run_dir).text
