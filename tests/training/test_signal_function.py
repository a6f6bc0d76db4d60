"""A loss signal of the user's own in real runs: what it is given, whose result counts, resume, failures."""

import json
import sys

import pytest
import torch
from ranks import run_ranks
from tiny_run import be_trained, read_lines, tiny_config

from examples.own_signal import scaled_loss
from versatune_ds.distributed import World
from versatune_ds.mixture.own_signal import DomainLosses
from versatune_ds.training import assemble, signal_function
from versatune_ds.training.resume import find_resume_point
from versatune_ds.training.run_records import explain_run, replay_run
from versatune_ds.training.signal_context import SignalContext

MODULE = "signals_of_a_run"
SOURCE = '''
import torch
seen = []

def doubled(context):
    """Twice the held-out loss, made of both ranks; the result of any rank but the first must not count."""
    logits = context.model(input_ids=torch.ones(2, 4, dtype=torch.int64, device=context.device)).logits
    assert logits.shape[:2] == (2, 4) and not logits.requires_grad and not context.model.training
    assert context.tokenizer("a")["input_ids"] and context.num_steps == 4
    seen.append(context.step)
    num_ranks = context.sum_over_ranks([1])[0]
    return {} if context.rank else {name: num_ranks * loss for name, loss in context.held_out.mean.items()}

def failing(context):
    return dict.fromkeys(context.domain_names, 1 / abs(context.step - 4))

def short_of_memory(context):
    raise torch.OutOfMemoryError("no memory")
'''
LINE = "    return dict.fromkeys(context.domain_names, 1 / abs(context.step - 4))"


@pytest.fixture
def signals(tmp_path, monkeypatch):
    (tmp_path / f"{MODULE}.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield lambda name: f"mixture.signal={MODULE}:{name}"
    sys.modules.pop(MODULE, None)


def trained(config, world):
    """Train; return how a resume with another signal would be refused, and the steps the signal was called at."""
    run = be_trained(config, world)
    with pytest.raises(ValueError, match="saved with signal") as refused:
        find_resume_point(config, {**run.identity, "signal": f"{MODULE}:other"}, world=world)
    assert find_resume_point(config, run.identity, world=world).step == 4
    return str(refused.value), sys.modules[MODULE].seen


@pytest.mark.slow
def test_rank_zeros_numbers_decide_under_zero_3_and_the_record_replays_without_them(tmp_path, signals):
    stage_3 = "train.deepspeed={zero_optimization: {stage: 3}}"
    config = tiny_config(tmp_path, "train.steps=4", "train.rows_per_micro_batch=4", stage_3, signals("doubled"))
    (tmp_path / "results").mkdir()
    results = run_ranks(lambda world: trained(config, world), world_size=2, folder=tmp_path / "results")
    decisions = read_lines(config.run_dir / "decisions.jsonl")
    held_out = {
        line["step"]: line for line in read_lines(config.run_dir / "metrics.jsonl") if "domain/law/loss" in line
    }
    assert [decision["decided_at_step"] for decision in decisions] == [0, 4]
    for decision in decisions:
        assert decision["inputs"]["signal"] == f"{MODULE}:doubled"
        for name, loss in decision["losses"].items():
            assert loss["mean"] == 2 * held_out[decision["decided_at_step"]][f"domain/{name}/loss"]
    assert decisions[1]["weights_after"] != decisions[1]["weights_before"]
    for refused, steps in results:
        assert f"saved with signal '{MODULE}:doubled', now '{MODULE}:other'; use the earlier value, or allow" in refused
        assert steps == [0, 4]
    # The record needs no function.
    (tmp_path / f"{MODULE}.py").unlink()
    sys.modules.pop(MODULE, None)
    replayed = replay_run(config.run_dir)
    assert [decision.digest for decision in replayed.replayed] == [decision["digest"] for decision in decisions]
    assert f"The losses are what {MODULE}:doubled returned" in explain_run(config.run_dir, step=4)


def test_the_examples_scaled_loss_multiplies_what_was_just_measured():
    held_out = DomainLosses(mean={"law": 1.5, "code": 2.0, "medicine": None}, stderr={"law": 0.1, "code": 0.2})
    context = SignalContext(
        step=0, num_steps=4, domain_names=("law", "code", "medicine"), held_out=held_out, model=None, tokenizer=None,
        device=torch.device("cpu"), rank=0, world_size=1,
    )  # fmt: skip
    scaled = scaled_loss(context)
    assert scaled.mean == {"law": 3.0, "code": 2.0, "medicine": None}
    assert scaled.stderr == {"law": 0.2, "code": 0.2}


@pytest.mark.slow
def test_a_signal_that_fails_is_one_line_with_its_file_and_line_and_a_failure_of_the_machine_stays_one(
    tmp_path, signals, monkeypatch
):
    cache = tmp_path / "cache"
    monkeypatch.setenv("CHOICES", str(tmp_path))
    questions = [{"question": "which?", "choices": ["a", "bb", "ccc"], "answer": answer} for answer in range(3)]
    (tmp_path / "law.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))

    def fail(world):
        found, logged = {}, []
        monkeypatch.setattr(signal_function.logger, "error", lambda text, *parts: logged.append(text % parts))
        for name in ("failing", "short_of_memory"):
            try:
                be_trained(tiny_config(tmp_path / name, signals(name), cache_dir=cache), World())
            except (ValueError, torch.OutOfMemoryError) as error:
                found[name] = (type(error).__name__, str(error), list(logged))
        config = tiny_config(
            tmp_path / "choices", "train.steps=4", "mixture.signal=examples.own_signal:wrong_choices", cache_dir=cache
        )
        be_trained(config, World())
        found["choices"] = [decision["losses"] for decision in read_lines(config.run_dir / "decisions.jsonl")]
        return found

    (tmp_path / "results").mkdir()
    (found,) = run_ranks(fail, world_size=1, folder=tmp_path / "results")
    line = 1 + SOURCE.splitlines().index(LINE)
    kind, text, _ = found["failing"]
    assert kind == "ValueError"
    assert text.startswith(f"mixture.signal: {MODULE}:failing (")
    assert text.endswith(f"{MODULE}.py:{line}) raised ZeroDivisionError after step 4: division by zero")
    # The example that asks the model: the same question with each of its choices as the answer, so two of three wrong.
    assert len(found["choices"]) == 2
    for losses in found["choices"]:
        assert losses["law"] == {"mean": 2 / 3, "stderr": pytest.approx((2 / 27) ** 0.5), "num_loss_tokens": 1}
        assert losses["code"] == {"mean": None, "stderr": None, "num_loss_tokens": 0}
    kind, text, notes = found["short_of_memory"]
    assert (kind, text) == ("OutOfMemoryError", "no memory")
    assert f"{MODULE}:short_of_memory failed after step 0" in notes[0]


def test_a_signal_that_cannot_be_imported_is_found_before_the_model_is_built_and_a_former_run_deleted(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(assemble, "build_model", lambda setup: pytest.fail("the model was built"))
    with pytest.raises(ValueError, match=r"^mixture\.signal: nowhere:nothing: cannot import 'nowhere'"):
        be_trained(tiny_config(tmp_path, "mixture.signal=nowhere:nothing"), World(), is_fresh=True)
