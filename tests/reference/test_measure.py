"""`versatune reference`: single-domain runs, their held-out minimum, and reference.json with its checks."""

import gc
import json
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from chat_data import chat_rows, write_jsonl
from ranks import run_ranks
from references import measure, setup_of_recipe
from safetensors.torch import load_file
from tiny_run import ROOT, be_trained, read_lines, tiny_config

from versatune_ds.config.model import model_identity
from versatune_ds.exit_codes import REQUEUE_EXIT_CODE
from versatune_ds.export.run_export import export_run
from versatune_ds.mixture.planning.predictor import PlanTask
from versatune_ds.mixture.planning.transfer_reader import read_transfer
from versatune_ds.planning.kept_runs import open_kept_runs
from versatune_ds.planning.merge import MERGE
from versatune_ds.planning.mixmin import MIXMIN
from versatune_ds.reference import measure as reference
from versatune_ds.reference import one_domain
from versatune_ds.reference.command import ReferenceTask
from versatune_ds.reference.file import reference_notes
from versatune_ds.reference.one_domain import (
    RESULT_FILE,
    EarlyStop,
    check_made_with,
    domain_recipe,
    folder_name,
    read_result,
    result_of_run,
)
from versatune_ds.reference.score import score_model
from versatune_ds.training.run import Run
from versatune_ds.training.run_records import replay_run
from versatune_ds.training.signals import Agreement, StopSignals

STAGE_WEIGHTS = {}
"""Sums of the weights that the first stage tested ends with: all stages train to the same."""
STEPS = ("reference.steps=4", "reference.evaluate_every=2")


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def decision_with(loss):
    return SimpleNamespace(losses={"law": {"mean": loss}})


def results_of(config):
    folder = config.run.output_dir / "reference" / "tiny"
    results = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/result.json")}
    return {name: result for name, result in results.items() if not name.startswith("all_domains")}


@pytest.fixture(scope="module")
def measured(tmp_path_factory, cache_dir):
    """Measure the references of the tiny recipe once, on two ranks: (config, path of reference.json)."""
    config = tiny_config(tmp_path_factory.mktemp("measured"), *STEPS, cache_dir=cache_dir)
    assert measure(config, world_size=2, folder=config.run.output_dir / "ranks") == [0, 0]
    return config, config.run.output_dir / "tiny-reference.json"


def test_a_domain_stops_after_patience_measurements_without_a_new_minimum():
    stop = EarlyStop("law", patience=2)
    assert [stop(decision_with(loss)) for loss in (3.0, 2.0, 2.5, 1.9, 1.9, None)] == [False] * 5 + [True]


def test_a_resumed_domain_stops_where_the_uninterrupted_one_does():
    losses = [3.0, 2.0, 2.5, 2.4]
    uninterrupted = EarlyStop("law", patience=2)
    answers = [uninterrupted(decision_with(loss)) for loss in losses]
    for split in range(4):
        resumed = EarlyStop("law", patience=2, losses=losses[:split])
        assert [resumed(decision_with(loss)) for loss in losses[split:]] == answers[split:]


def test_the_recipe_of_one_domain_rounds_its_steps_up_to_a_measurement(tmp_path):
    config = tiny_config(tmp_path, "train.steps=50", "reference.evaluate_every=4", "reference.learning_rate=0.5")
    recipe = domain_recipe(config, "law")
    assert (recipe.train.steps, recipe.mixture.update_every, recipe.train.learning_rate) == (28, 4, 0.5)
    assert recipe.run_dir == tmp_path / "reference" / "tiny" / "law"
    assert recipe.data.cache_dir == config.data.cache_dir
    assert not recipe.mixture.watches_overfitting  # such a run ends by itself where its held-out loss rises


def test_domain_names_that_are_unsafe_as_folder_names_get_distinct_safe_ones():
    assert folder_name("law") == "law"
    names = [folder_name(name) for name in ("a b", "a_b", "../x", "é", "")]
    assert len(set(names)) == 5
    assert not any("/" in name or name.startswith(".") for name in names)


@pytest.mark.slow
def test_every_domain_gets_the_lowest_held_out_loss_of_its_run_with_provenance(measured):
    config, path = measured
    content = json.loads(path.read_text())
    folder = config.run.output_dir / "reference" / "tiny"
    assert sorted(content["losses"]) == ["code", "finance", "general", "law", "medicine", "science"]
    for name, loss in content["losses"].items():
        decisions = read_lines(folder / name / "decisions.jsonl")
        held_out = {d["decided_at_step"]: d["losses"][name]["mean"] for d in decisions}
        assert sorted(held_out) == [0, 2, 4]
        assert loss == min(held_out.values()) == held_out[content["steps"][name]]
        assert loss < content["base_losses"][name]
        assert content["gaps"][name] == loss - content["train_losses"][name]
        assert content["stderrs"][name] > 0
        assert not (folder / name / "checkpoints").exists()
    assert set(content["digests"]) == {"tokenizer", "template", "mask", "held-out split"}
    assert (content["measured_on"], content["seed"], content["settings"]["steps"]) == ("held-out", 3, 4)


@pytest.mark.slow
def test_the_transfer_table_has_the_losses_of_all_domains_and_the_weights_they_belong_to(measured, tmp_path):
    config, path = measured
    content, table = json.loads(path.read_text()), read_transfer(path.with_name("tiny-transfer.json"))
    names = list(table.domain_set)
    assert list(table.sources) == names == list(content["losses"])
    assert table.base_losses_K == pytest.approx([content["base_losses"][name] for name in names], abs=1e-6)
    for k, name in enumerate(names):
        source = table.sources[name]
        held_out = list(results_of(config)[name]["held_out_losses"].values())
        assert source.losses_SK[:, k] == pytest.approx(held_out, abs=1e-6)
        assert source.changes_SK == pytest.approx(source.losses_SK - table.base_losses_K, abs=1e-12)
        assert source.steps_S.tolist() == [0, 2, 4]
        assert 0 == source.tokens_S[0] < source.tokens_S[1] < source.tokens_S[2]
        assert not source.change_stderrs_SK[0].any()
        assert (source.change_stderrs_SK[1:] > 0).all()
    # The run on equal shares, which keeps no weights.
    (mixed,) = table.mixed
    assert mixed.weights_K == pytest.approx(1 / 6)
    assert mixed.steps_S.tolist() == [0, 2, 4]
    assert mixed.changes_SK[2].mean() < 0
    assert mixed.losses_SK[0] == pytest.approx(table.base_losses_K, abs=1e-6)
    assert not list((config.run.output_dir / "reference" / "tiny").glob("all_domains*/model/*.safetensors"))
    # The kept weights are those of the last step.
    folder = path.parent / table.sources["law"].model
    (results,) = run_ranks(
        lambda world: score_model(setup_of_recipe(config, world), names=names, model=str(folder)),
        world_size=1,
        folder=tmp_path,
    )
    last = [result["loss"] for result in results]
    assert last == pytest.approx(table.sources["law"].losses_SK[2].tolist(), abs=2e-5)


@pytest.mark.slow
def test_measuring_the_other_domains_changes_no_digit_of_a_domains_own_result(measured, tmp_path, cache_dir):
    without = ("reference.transfer=false", "reference.keep_models=false")
    config = tiny_config(tmp_path, *STEPS, *without, cache_dir=cache_dir)
    assert measure(config, ReferenceTask(domains=("law",)), world_size=2, folder=tmp_path / "ranks") == [0, 0]
    alone, together = results_of(config)["law"], results_of(measured[0])["law"]
    assert alone == {key: value for key, value in together.items() if key not in ("transfer", "model")}
    assert {"transfer", "model"} <= together.keys()
    folder, other = (domain_recipe(c, "law").run_dir for c in (config, measured[0]))
    steps = [
        [(line["step"], line.get("train/loss")) for line in read_lines(f / "metrics.jsonl")] for f in (folder, other)
    ]
    assert steps[0] == steps[1]
    assert [path.name for path in folder.glob("transfer*")] == []
    assert [path.name for path in (folder / "model").glob("*.safetensors")] == []


@pytest.mark.slow
def test_every_domain_starts_from_the_same_base_model_as_the_run(measured, tmp_path, cache_dir):
    _, path = measured
    config = tiny_config(tmp_path, "train.steps=1", f"mixture.reference={path}", cache_dir=cache_dir)
    run_ranks(lambda world: be_trained(config, world).step, world_size=2, folder=tmp_path)
    start = read_lines(config.run_dir / "decisions.jsonl")[0]["losses"]
    base = json.loads(path.read_text())["base_losses"]
    assert base == pytest.approx({name: losses["mean"] for name, losses in start.items()}, abs=1e-6)
    assert json.loads((config.run_dir / "reference.json").read_text()) == json.loads(path.read_text())
    assert "All 1 decisions are the recorded ones" in replay_run(config.run_dir).text


@pytest.mark.slow
def test_a_measured_domain_is_not_measured_again_and_changed_settings_are_refused(measured, tmp_path, monkeypatch):
    config, path = measured
    monkeypatch.setattr(reference, "train", lambda *_, **__: pytest.fail("trained again"))
    before = json.loads(path.read_text())
    assert measure(config, folder=tmp_path / "again") == [0]
    assert json.loads(path.read_text())["losses"] == before["losses"]
    slower = config.model_copy(update={"reference": config.reference.model_copy(update={"learning_rate": 0.1})})
    with pytest.raises(AssertionError, match=r"code: measured with learning_rate 0\.003, now 0\.1; use the earlier"):
        measure(slower, folder=tmp_path / "slower")


@pytest.mark.slow
def test_an_interrupted_domain_resumes_and_ends_with_the_same_loss(measured, tmp_path, cache_dir, monkeypatch):
    config = tiny_config(tmp_path, *STEPS, cache_dir=cache_dir)
    task = ReferenceTask(domains=("law",))
    with monkeypatch.context() as patch:
        stopped = Agreement(is_stopped=True, is_save_due=False)
        patch.setattr(StopSignals, "agreed", lambda signals: stopped)
        assert measure(config, task, world_size=2, folder=tmp_path / "first") == [REQUEUE_EXIT_CODE] * 2
    assert results_of(config) == {}
    assert measure(config, task, world_size=2, folder=tmp_path / "second") == [0, 0]
    assert results_of(config)["law"] == results_of(measured[0])["law"]
    assert not (tmp_path / "tiny-reference.json").exists()


def test_a_domain_that_fails_abandons_its_save_in_the_background_and_closes_its_records(monkeypatch):
    done = []
    run = Run.__new__(Run)  # only what closing a run touches
    run.saving = SimpleNamespace(abandon=lambda: done.append("save abandoned"))
    run.loader = SimpleNamespace(close=lambda: done.append("loader closed"))
    run.monitor = SimpleNamespace(finish=lambda exit_code: done.append(exit_code))

    def fail(*_, **__):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(reference, "train", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        reference._train_domain(None, run, reference.ALL_DOMAINS, transfer=None)
    assert done == ["save abandoned", "loader closed", REQUEUE_EXIT_CODE]


def live_tensors():
    """Return all tensors of this process. isinstance would ask weak proxies, some of which are dead."""
    return [item for item in gc.get_objects() if type(item) in (torch.Tensor, torch.nn.Parameter)]


def live_tensor_bytes(*, apart_from):
    """Return the bytes of the tensors' storages, without those that the process had when it was forked."""
    new = [tensor for tensor in live_tensors() if id(tensor) not in apart_from and tensor.device.type == "cpu"]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in new}
    return sum(storages.values())


def memory_at_the_start_of_each_domain(config, world):
    """Measure three domains; return, at the start of each, the tensor bytes and the earlier engines still alive."""
    engines, found, begin_domain = [], [], reference._begin_domain
    inherited = {id(tensor): tensor for tensor in live_tensors()}  # of tests before this one, in the same process

    def watched(*arguments, **named):
        found.append((live_tensor_bytes(apart_from=inherited), sum(engine() is not None for engine in engines)))
        run = begin_domain(*arguments, **named)
        engine = run.engine.deepspeed_engine
        engines.extend(map(weakref.ref, (engine, engine.optimizer, next(engine.module.parameters()))))
        return run

    reference._begin_domain = watched  # in a process of its own
    stop_signals = StopSignals()
    stop_signals.ignore = lambda: None
    task = ReferenceTask(domains=("code", "law", "medicine"))
    assert reference.measure_references(setup_of_recipe(config, world), task=task, stop_signals=stop_signals) == 0
    return found


@pytest.mark.slow
def test_the_kept_models_give_the_losses_of_the_table_and_plan_from_them(measured):
    config, path = measured
    table = read_transfer(path.with_name("tiny-transfer.json"))
    (mixed,) = table.mixed
    tokens = float(mixed.tokens_S[-1])
    task = PlanTask(table=table, num_steps=4, num_tokens=tokens, folder=path.parent, config=config)
    runs, corners_KK = open_kept_runs(task), np.eye(len(table.domain_set))
    for corner_K, source in zip(corners_KK, table.sources.values(), strict=True):
        losses = runs.models.losses(corner_K)
        assert losses.mean() == pytest.approx(source.losses_SK[-1], rel=1e-5)
        assert losses.change_standard_error(runs.models.base) == pytest.approx(source.change_stderrs_SK[-1], rel=1e-3)
    for planner in (MERGE, MIXMIN):
        predicted = planner.make(task).predict(np.concatenate([corners_KK, mixed.weights_K[None]]))
        wanted = [*(source.losses_SK[-1] for source in table.sources.values()), mixed.losses_SK[-1]]
        assert predicted.losses_NK == pytest.approx(np.array(wanted), rel=1e-6)
        assert np.all(predicted.stderrs_NK > 0)
    assert len(list((runs.cache_dir / "token-losses").glob("*.npz"))) == len(table.domain_set)


def domains_without_held_out_rows(folder, *, valid):
    """Return the data overrides of two domains, of which `valid` names those with held-out rows."""
    for name in ("law", "code"):
        for split, num_rows in (("train", 40), ("valid", 6)):
            write_jsonl(folder / split / f"{name}.jsonl", chat_rows(num_rows, topic=f"{name} {split}"))
    return (
        "data.synthetic=null",
        *(f"data.domains.{name}.train=[{folder}/train/{name}.jsonl]" for name in ("law", "code")),
        *(f"data.domains.{n}.valid=[{f'{folder}/valid/{n}.jsonl' if n in valid else ''}]" for n in ("law", "code")),
    )


@pytest.mark.slow
def test_a_domain_without_held_out_rows_gets_no_reference_and_keeps_its_weight_under_the_default_policy(tmp_path):
    data = domains_without_held_out_rows(tmp_path / "data", valid=("law",))
    config = tiny_config(tmp_path, *data, *STEPS, "train.steps=4", "mixture.update_every=2")
    assert measure(config, folder=tmp_path / "ranks") == [0]
    path = tmp_path / "tiny-reference.json"
    assert json.loads(path.read_text())["losses"]["code"] is None
    table = read_transfer(tmp_path / "tiny-transfer.json")
    assert (table.unmeasured, list(table.sources)) == (("code",), ["law"])
    steered = (f"mixture.reference={path}", "mixture.policy=steer", "mixture.prior={law: 0.7, code: 0.3}")
    trained = tiny_config(tmp_path, *data, "train.steps=4", "mixture.update_every=2", "run.name=steered", *steered)
    assert run_ranks(lambda world: be_trained(trained, world).step, world_size=1, folder=tmp_path) == [4]
    decisions = read_lines(trained.run_dir / "decisions.jsonl")
    assert [d["losses"]["code"]["mean"] for d in decisions] == [None] * 3
    # It starts half way between the prior and equal shares, and stays there.
    assert [d["weights_after"]["code"] for d in decisions] == pytest.approx([0.4] * 3)


def test_references_of_domains_without_held_out_rows_are_refused_before_training(tmp_path):
    data = domains_without_held_out_rows(tmp_path / "data", valid=())
    config = tiny_config(tmp_path, *data, *STEPS)
    error = "StartError: data: no held-out rows of law, code, so no reference can be measured; give some in `valid`"
    with pytest.raises(AssertionError, match=error):
        measure(config, folder=tmp_path / "ranks")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_nothing_of_a_domains_engine_is_in_memory_when_the_next_domain_begins(stage, tmp_path, cache_dir):
    deepspeed = f"train.deepspeed={ROOT}/ds_configs/zero{stage}.json"
    config = tiny_config(tmp_path, deepspeed, "reference.steps=1", "reference.evaluate_every=1", cache_dir=cache_dir)
    for found in run_ranks(
        lambda world: memory_at_the_start_of_each_domain(config, world), world_size=2, folder=tmp_path
    ):
        assert [num_alive for _, num_alive in found] == [0, 0, 0]
        # A scalar and the 4 KiB of one text that ranks exchange may remain; an engine's tensors take 500 kB.
        assert max(num_bytes for num_bytes, _ in found) <= 4096 + 64
    # Every stage leaves the other domains' losses, and the same complete weights.
    results = results_of(config)
    assert sorted(results) == ["code", "law", "medicine"]
    assert all(len(result["transfer"]["losses"]["science"]) == 2 for result in results.values())
    weights = load_file(domain_recipe(config, "law").run_dir / "model" / "model.safetensors")
    sums = {name: weight.double().abs().sum().item() for name, weight in weights.items()}
    assert sums == pytest.approx(STAGE_WEIGHTS.setdefault("law", sums), rel=1e-5)


@pytest.mark.slow
def test_references_of_other_data_are_refused_before_training_and_accepted_with_a_warning(
    measured, tmp_path, cache_dir, caplog
):
    _, path = measured
    other = ("data.synthetic.num_valid_rows=6", f"mixture.reference={path}", "train.steps=1")
    config = tiny_config(tmp_path, *other, cache_dir=cache_dir)
    with pytest.raises(AssertionError, match=r"measured with another held-out split .*measure the references again"):
        run_ranks(lambda world: be_trained(config, world).step, world_size=1, folder=tmp_path)
    assert not config.run_dir.exists()
    warned = tiny_config(tmp_path, *other, "mixture.reference_check=warn", cache_dir=cache_dir)
    assert run_ranks(lambda world: be_trained(warned, world).step, world_size=1, folder=tmp_path) == [1]


@pytest.mark.slow
def test_scoring_a_model_gives_the_losses_that_its_own_run_measured_and_so_does_sharded_evaluation_of_it(
    tmp_path, cache_dir
):
    config = tiny_config(tmp_path, "train.steps=2", "mixture.update_every=2", cache_dir=cache_dir)
    run_ranks(lambda world: be_trained(config, world).step, world_size=1, folder=tmp_path)
    folder = export_run(config.run_dir, output=tmp_path / "exported")
    last = read_lines(config.run_dir / "decisions.jsonl")[-1]["losses"]
    names = ("law", "code")
    (results,) = run_ranks(
        lambda world: score_model(setup_of_recipe(config, world), names=names, model=str(folder)),
        world_size=1,
        folder=tmp_path,
    )
    assert {result["domain"] for result in results} == set(names)
    for result in results:
        assert result["loss"] == pytest.approx(last[result["domain"]]["mean"], abs=2e-5)
        assert result["stderr"] == pytest.approx(last[result["domain"]]["stderr"], abs=2e-5)
        assert result["train_loss"] > 0
    # Under ZeRO-3 each of two ranks loads its part of the model.
    zero3 = tiny_config(tmp_path, "train.deepspeed={zero_optimization: {stage: 3}}", cache_dir=cache_dir)
    for ranks_results in run_ranks(
        lambda world: score_model(setup_of_recipe(zero3, world), names=names, model=str(folder)),
        world_size=2,
        folder=tmp_path,
    ):
        for result, expected in zip(ranks_results, results, strict=True):
            assert result.pop("domain") == expected["domain"]
            assert result == pytest.approx({key: expected[key] for key in result}, rel=1e-5)


def test_the_result_of_a_run_without_a_finite_loss_is_refused(tmp_path):
    decision = SimpleNamespace(losses={"law": {"mean": None}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_domain, "read_decisions", lambda path: [decision])
        with pytest.raises(ValueError, match=r"no held-out loss of law is finite; lower reference.learning_rate"):
            result_of_run(tmp_path, "law")


def test_notes_report_memorised_saturated_and_unfinished_references():
    def note(**values):
        result = {"domain": "law", "loss": 1.0, "base_loss": 2.0, "train_loss": 0.9, "step": 4, **values}
        return reference_notes([result, {**result, "domain": "code"}], most_steps=8, origin="r.json")

    assert note() == []
    assert "memorised its rows" in note(train_loss=0.4)[0]
    assert "potential exceeds 0.95 in all domains" in note(loss=0.01, train_loss=None)[0]
    assert "still falling at the last step" in note(step=8)[0]
    assert "nothing would be left to learn" in note(loss=2.0, train_loss=None)[0]
    assert any("never fell below the base model's" in text for text in note(loss=2.0, step=0))


def test_a_domain_measured_when_another_attention_was_the_default_is_not_measured_again(tmp_path):
    config = tiny_config(tmp_path)
    model = config.model.model_dump(mode="json")
    now = {"model": model_identity({**model, "attention": "auto", "fused_layers": "auto"}), "seed": 1}
    before = {**model, "attention": "sdpa"}  # a version without fused layers
    path = domain_recipe(config, "law").run_dir / RESULT_FILE
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"loss": 1.0, "made_with": {"model": before, "seed": 1}}))
    saved = read_result(config, "law")["made_with"]
    assert saved == now
    other = {"model": {**now["model"], "compile": True}, "seed": 1}
    with pytest.raises(ValueError, match="measured with model"):
        check_made_with(saved, other, folder=tmp_path)
