"""Questions are asked while training, on all ranks, within a budget, and change nothing of the training."""

import json
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from chat_data import write_jsonl
from hypothesis import given
from hypothesis import strategies as st
from ranks import run_ranks
from tiny_run import losses_by_step, read_lines, tiny_config

from versatune_ds.distributed import World
from versatune_ds.domains import DomainSet
from versatune_ds.evaluation import while_training
from versatune_ds.evaluation.choices import ChoiceSet
from versatune_ds.evaluation.while_training import TrainingTasks, accuracies, in_turn, tasks_of
from versatune_ds.training.assemble import assemble_run
from versatune_ds.training.loop import measure_before_training, train
from versatune_ds.training.run import Run
from versatune_ds.training.start_checks import StartCheckInput, check_start


def test_accuracies_are_of_the_questions_that_were_asked_and_their_mean_is_over_domains():
    found = accuracies(
        "choices", DomainSet(("law", "code", "art")), np.array([0, 0, 0, 1, 2]),
        np.array([True, False, True, False, True]), np.array([True, True, False, True, False]),
    )  # fmt: skip
    assert found == {
        "task/choices/accuracy": 0.25, "task/choices/num_questions": 3,
        "task/choices/law/accuracy": 0.5, "task/choices/law/num_questions": 2,
        "task/choices/code/accuracy": 0.0, "task/choices/code/num_questions": 1,
    }  # fmt: skip
    assert accuracies("exact", DomainSet(("law",)), np.array([0]), np.array([True]), np.array([False])) == {
        "task/exact/num_questions": 0
    }


def test_without_a_number_of_steps_questions_are_asked_before_and_after_training_alone(tmp_path):
    asked = []
    for override, expected in (("exact: 2", [0, 4]), ("every_steps: 3, exact: 2", [0, 3, 4])):
        run = SimpleNamespace(
            config=tiny_config(tmp_path, f"validation.tasks={{{override}}}"), tasks=lambda engine: {}, engine=None,
            meter=SimpleNamespace(paused=nullcontext), updates=SimpleNamespace(paused=nullcontext),
            monitor=SimpleNamespace(metrics=lambda step, values: asked.append(step)),
        )  # fmt: skip
        for step in range(5):
            run.step, run.is_complete = step, step == 4
            Run.ask_tasks_if_due(run)
        assert asked == expected
        asked.clear()


@given(st.lists(st.integers(0, 3), max_size=20), st.integers(0, 5))
def test_every_question_has_one_place_and_no_domain_is_more_than_one_turn_ahead(domain_ids, seed):
    order = in_turn(np.array(domain_ids, dtype=int), seed=seed)
    assert sorted(order) == list(range(len(domain_ids)))
    left = {name: domain_ids.count(name) for name in set(domain_ids)}
    asked = dict.fromkeys(left, 0)
    for place in order:
        asked[domain_ids[place]] += 1
        left[domain_ids[place]] -= 1
        waiting = [asked[name] for name in asked if left[name]]
        assert not waiting or max(asked.values()) - min(waiting) <= 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("validation.tasks={every_steps: 4}", r"^validation\.tasks: nothing is asked; give files of multiple choice"),
        ("validation.tasks={every_steps: 0, exact: 2}", r"^validation\.tasks\.every_steps: "),
    ],
)
def test_a_section_that_asks_nothing_or_never_is_refused(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(tmp_path, override)


def test_one_file_needs_no_list_around_it(tmp_path):
    config = tiny_config(tmp_path, "validation.tasks={every_steps: 4, choices: law.jsonl}")
    assert [str(path) for path in config.validation.tasks.choices] == ["law.jsonl"]


def test_missing_files_are_refused_before_a_process_starts(tmp_path):
    config = tiny_config(tmp_path, "validation.tasks={every_steps: 4, choices: [absent.jsonl]}")
    with pytest.raises(ValueError, match=r"^validation\.tasks\.choices: absent\.jsonl: no such file or folder"):
        check_start(StartCheckInput(config=config, stage="train"))


def test_held_out_rows_without_an_answer_to_write_are_refused(tmp_path):
    config = tiny_config(tmp_path, "validation.tasks={every_steps: 4, exact: 2}")
    setup = SimpleNamespace(config=config, world=World(), data=SimpleNamespace(valid=()))
    with pytest.raises(ValueError, match=r"^validation\.tasks\.exact: no held-out example has an answer to write"):
        tasks_of(setup)


class NoModel:
    """Stand-in for an engine whose model is not run."""

    @property
    def deepspeed_engine(self):
        return self

    module = deepspeed_engine

    def eval(self):
        return self


def test_no_batch_is_begun_after_the_budget_and_the_counts_say_how_many_were_asked(monkeypatch, caplog):
    """Each batch of two questions takes a second; the first option always has the lower loss, and code's is wrong."""
    caplog.set_level("INFO")
    seconds = iter(range(99))
    choices = ChoiceSet(
        domain_set=DomainSet(("law", "code")), options=(None,) * 16, question_C=np.repeat(np.arange(8), 2),
        num_bytes_C=np.ones(16), answer_Q=np.array([0, 2, 4, 6, 9, 11, 13, 15]), domain_id_Q=np.repeat([0, 1], 4),
    )  # fmt: skip

    def losses(model, choices, places):
        numbers = [number for place in places for number in choices.options_of(place)]
        return numbers, np.array([1.0, 2.0] * len(places))

    monkeypatch.setattr(while_training, "losses_of_questions", losses)
    ask = partial(
        TrainingTasks, choices=choices, exact=(), domain_set=choices.domain_set, tokenizer=None, world=World(), seed=0,
        questions_per_batch=2,
    )  # fmt: skip
    tasks = ask(budget_seconds=2, clock=lambda: next(seconds))
    assert tasks(NoModel()) == {
        "task/choices/accuracy": 0.5, "task/choices/num_questions": 4,
        "task/choices/law/accuracy": 1.0, "task/choices/law/num_questions": 2,
        "task/choices/code/accuracy": 0.0, "task/choices/code/num_questions": 2,
    }  # fmt: skip
    assert "task choices: 50.0 % right, 4 questions of 8: validation.tasks.budget_seconds was spent" in caplog.text
    assert ask(budget_seconds=None)(NoModel())["task/choices/num_questions"] == 8


def asks(num_law, num_code):
    """Write questions of two domains whose right option is the first; return the folder."""

    def write(folder):
        folder.mkdir(exist_ok=True)
        for name, count in (("law", num_law), ("code", num_code)):
            questions = [{"question": f"What is {i}?", "choices": ["yes", "no no"], "answer": 0} for i in range(count)]
            write_jsonl(folder / f"{name}.jsonl", [json.dumps(question) for question in questions])
        return folder

    return write


@pytest.mark.slow
def test_two_ranks_ask_all_questions_between_them_and_so_does_sharded_evaluation_in_a_run_that_trains_unchanged(
    tmp_path,
):
    choices = asks(6, 3)(tmp_path / "choices")

    def run_of(name, *overrides):
        config = tiny_config(tmp_path, f"run.name={name}", "train.steps=3", *overrides, cache_dir=tmp_path / "cache")
        folder = tmp_path / f"results_{name}"
        folder.mkdir()

        def work(world):
            run = assemble_run(config, world=world, device=torch.device("cpu"), is_fresh=False, make_tasks=tasks_of)
            measure_before_training(run)
            train(run)
            run.loader.close()
            run.monitor.finish(exit_code=0)
            return run.is_complete

        assert run_ranks(work, world_size=2, folder=folder) == [True, True]
        lines = [line for line in read_lines(config.run_dir / "metrics.jsonl") if "task/choices/num_questions" in line]
        return losses_by_step(config.run_dir), {line["step"]: line for line in lines}

    asked = f"choices: [{choices}], exact: 1"
    losses, none = run_of("silent")
    assert none == {}
    losses_asked, found = run_of("asks", f"validation.tasks={{every_steps: 2, {asked}}}")
    assert losses_asked == losses
    assert list(found) == [0, 2, 3]
    for line in found.values():
        assert line["task/choices/num_questions"] == 9
        assert line["task/choices/law/num_questions"] == 6
        law, code = line["task/choices/law/accuracy"], line["task/choices/code/accuracy"]
        assert line["task/choices/accuracy"] == pytest.approx((law + code) / 2)
        assert line["task/exact/num_questions"] > 0
    # Under ZeRO-3 ranks with other questions make the same passes, and find the same.
    zero3 = "train.deepspeed={zero_optimization: {stage: 3}}"
    losses_sharded, found_sharded = run_of("sharded", zero3, f"validation.tasks={{every_steps: 2, {asked}}}")
    assert losses_sharded == pytest.approx(losses, rel=1e-5)
    of_tasks = {step: {k: v for k, v in line.items() if k.startswith("task/")} for step, line in found.items()}
    assert of_tasks == {
        step: {k: v for k, v in line.items() if k.startswith("task/")} for step, line in found_sharded.items()
    }
