"""transfer.json: where it goes, what it is made of, what its table shows, and when it is not written."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from references import setup_of_recipe
from tiny_run import ROOT, tiny_config
from transfer_tables import two_domain_table

from versatune_ds.distributed import World
from versatune_ds.mixture.measurement import Remembered
from versatune_ds.mixture.planning.transfer_reader import read_transfer
from versatune_ds.mixture.statistics import ExampleLosses
from versatune_ds.reference import model_storage
from versatune_ds.reference.command import ReferenceTask, launch_reference
from versatune_ds.reference.model_storage import bytes_text, check_room_for_models
from versatune_ds.reference.one_domain import domain_recipe
from versatune_ds.reference.results import write_files
from versatune_ds.reference.transfer_file import transfer_path, transfer_text
from versatune_ds.reference.transfer_record import (
    _restored_base,
    held_out_digests,
    recorded_transfer,
    sizes_of,
)

MEASURED_ON = {"law": "d1", "code": "d2"}
SHARDS = SimpleNamespace(num_examples=2, lengths=np.array([30, 12], dtype=np.int32))


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """The tiny recipe's data on one process, without a model."""
    folder = tmp_path_factory.mktemp("setup")
    return setup_of_recipe(tiny_config(folder, "reference.steps=4", "reference.evaluate_every=2"), World())


def result_of(setup, name, *, transfer):
    """A result as a run on one domain leaves it; every other domain gets worse by 1 nat a step."""
    domains, steps = list(held_out_digests(setup.data)), [0, 2]
    changes = {j: [0.0, -1.0 if j == name else 2.0] for j in domains}
    measured = {
        "base": {"losses": dict.fromkeys(domains, 4.0), "stderrs": dict.fromkeys(domains, 0.1)},
        "steps": steps,
        "tokens": [0, 64],
        "losses": {j: [4.0 + change for change in changes[j]] for j in domains},
        "changes": changes,
        "change_stderrs": {j: [0.0, 0.1] for j in domains},
        "rows": 60,
        "tokens_per_epoch": 3000,
        "held_out": held_out_digests(setup.data),
    }
    result = {"domain": name, "loss": 3.0, "stderr": 0.1, "base_loss": 4.0, "step": 2, "steps_done": 2}
    return {**result, "train_loss": 2.9, "num_loss_tokens": 100, **({"transfer": measured} if transfer else {})}


def test_transfer_json_is_beside_reference_json_and_named_after_it():
    names = {
        "runs/x-reference.json": "runs/x-transfer.json",
        "runs/reference-reference.json": "runs/reference-transfer.json",
        "reference.json": "transfer.json",
        "my_reference_v2.json": "my_transfer_v2.json",
        "losses.json": "losses-transfer.json",
    }
    assert {name: str(transfer_path(Path(name))) for name in names} == names


def test_the_table_shows_changes_in_percent_and_the_noise_of_those_within_it():
    table = two_domain_table()
    assert transfer_text(table).splitlines() == [
        "change of each domain's loss in percent, after at most 4 steps on one domain alone",
        "trained on     law    code",
        "--------------------------",
        "law          -50.0  +16.7!",
        "code        (+6.2)   -66.7",
        "! rises by more than two standard errors; in brackets: within two standard errors of no change",
    ]


def test_a_file_of_another_kind_is_not_replaced_by_the_table(tmp_path):
    (tmp_path / "my-transfer.json").write_text('{"notes": "mine"}')
    task = ReferenceTask(output=tmp_path / "my-reference.json")
    recipe = ROOT / "recipes" / "quickstart.yaml"
    with pytest.raises(ValueError, match=r"my-transfer\.json is a file of another kind; give another name"):
        launch_reference(recipe, (), processes=1, task=task, is_quiet=True)


def line(step, *, law, code):
    losses = {"law": law, "code": code}
    changes = {"law": None if law is None else law - 2.0, "code": code - 3.0}
    errors = dict.fromkeys(losses, 0.0 if step == 0 else 0.25)
    return {"step": step, "tokens": 10 * step, "losses": losses, "stderrs": dict.fromkeys(losses, 0.5),
            "changes": changes, "change_stderrs": errors}  # fmt: skip


def test_a_runs_lines_become_columns_of_one_number_a_measurement(tmp_path):
    lines = [line(0, law=2.0, code=3.0), line(4, law=1.5, code=3.25), line(8, law=None, code=3.5)]
    (tmp_path / "transfer.jsonl").write_text("".join(json.dumps(values) + "\n" for values in lines))
    assert recorded_transfer(tmp_path, held_out=MEASURED_ON) == {
        "base": {"losses": {"law": 2.0, "code": 3.0}, "stderrs": {"law": 0.5, "code": 0.5}},
        "steps": [0, 4, 8],
        "tokens": [0, 40, 80],
        "losses": {"law": [2.0, 1.5, None], "code": [3.0, 3.25, 3.5]},
        "changes": {"law": [0.0, -0.5, None], "code": [0.0, 0.25, 0.5]},
        "change_stderrs": {"law": [0.0, 0.25, 0.25], "code": [0.0, 0.25, 0.25]},
        "held_out": MEASURED_ON,
    }
    (tmp_path / "transfer.jsonl").write_text(json.dumps(lines[1]) + "\n")
    assert recorded_transfer(tmp_path, held_out=MEASURED_ON) == {}
    assert sizes_of(SHARDS) == {"rows": 2, "tokens_per_epoch": 42}


def test_a_resumed_run_pairs_with_the_base_losses_it_kept_and_drops_later_lines(tmp_path, caplog):
    base = ExampleLosses(
        loss_sum_E=np.array([1.1, 2.2, 3.3]), num_loss_tokens_E=np.array([1, 2, 3]),
        domain_ids_E=np.array([0, 0, 1]), num_domains=2,
    )  # fmt: skip
    run = SimpleNamespace(config=SimpleNamespace(run_dir=tmp_path), step=4, domain_set=SimpleNamespace(names=("law",)))
    assert _restored_base(run, MEASURED_ON, chosen_for=[None, None, 200]) is None
    assert "it began without measuring all domains, so what law does to the domains stays unknown" in caplog.text
    content = {
        "held_out": MEASURED_ON,
        "chosen": {"num_chosen": None, "chosen_for": [None, None, 200]},
        "losses": Remembered().after(base).state_dict(),
    }
    (tmp_path / "transfer_base.json").write_text(json.dumps(content))
    lines = [line(step, law=2.0, code=3.0) for step in (0, 4, 8)]
    (tmp_path / "transfer.jsonl").write_text("".join(json.dumps(values) + "\n" for values in lines))
    restored = _restored_base(run, MEASURED_ON, chosen_for=[None, None, 200])
    losses = Remembered.from_state_dict(restored["losses"]).start
    assert losses.loss_sum_E.tolist() == base.loss_sum_E.tolist()
    assert [json.loads(text)["step"] for text in (tmp_path / "transfer.jsonl").read_text().splitlines()] == [0, 4]
    for digests, chosen_for in (({**MEASURED_ON, "code": "other"}, [None, None, 200]), (MEASURED_ON, [None, None, 9])):
        caplog.clear()
        assert _restored_base(run, digests, chosen_for=chosen_for) is None
        assert "held-out examples changed since it began" in caplog.text
        assert "--domains law --fresh" in caplog.text


def test_all_domains_together_make_both_files(setup, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    kept = domain_recipe(setup.config, "law").run_dir / "model"
    kept.mkdir(parents=True)
    (kept / "model.safetensors").touch()
    results = [result_of(setup, name, transfer=True) for name in setup.domain_set]
    results = [{**result, "model": "model"} for result in results]  # the others' folders were deleted since
    write_files(setup, results, task=ReferenceTask(output=tmp_path / "my-reference.json"))
    table = read_transfer(tmp_path / "my-transfer.json")
    law, medicine = (setup.domain_set.id_of(name) for name in ("law", "medicine"))
    assert list(table.sources) == list(setup.domain_set)
    assert table.sources["law"].changes_SK[1, [law, medicine]].tolist() == [-1.0, 2.0]
    assert (tmp_path / table.sources["law"].model).resolve() == kept.resolve()
    assert table.sources["code"].model is None
    reference = json.loads((tmp_path / "my-reference.json").read_text())
    assert {key: table.provenance[key] for key in ("digests", "model", "settings", "seed")} == {
        key: reference[key] for key in ("digests", "model", "settings", "seed")
    }
    assert "-25.0" in caplog.text
    assert "+50.0" in caplog.text


def test_results_of_earlier_versions_make_reference_json_alone_and_one_line_lists_them(setup, tmp_path, caplog):
    earlier = ("law", "code")
    results = [result_of(setup, name, transfer=name not in earlier) for name in setup.domain_set]
    write_files(setup, results, task=ReferenceTask(output=tmp_path / "reference.json"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reference.json"]
    (warning,) = [record.getMessage() for record in caplog.records if "transfer.json" in record.getMessage()]
    names = [name for name in setup.domain_set if name in earlier]
    assert f"{', '.join(names)} were measured without the losses of all domains" in warning
    assert warning.endswith(f"--domains {','.join(names)} --fresh")


def test_a_scored_model_and_a_recipe_without_transfer_write_no_transfer_json(setup, tmp_path):
    results = [result_of(setup, name, transfer=False) for name in setup.domain_set]
    task = ReferenceTask(scored_model="some/model", output=tmp_path / "reference.json")
    write_files(setup, results, task=task)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reference.json"]


def test_the_size_of_the_kept_models_is_logged_and_compared_with_the_disk(setup, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    check_room_for_models(setup, ["law", "code", "medicine"])  # 37,024 parameters each, in fp32
    assert "kept after training: 3 models of 148.1 kB: 444.3 kB in " in caplog.text, caplog.text
    assert "reference.keep_models=false keeps none" in caplog.text
    monkeypatch.setattr(model_storage.shutil, "disk_usage", lambda path: SimpleNamespace(free=200_000))
    with pytest.raises(ValueError, match=r"^reference\.keep_models: 3 models of .* but only 200\.0 kB are free"):
        check_room_for_models(setup, ["law", "code", "medicine"])
    check_room_for_models(setup, ["law"])
    check_room_for_models(setup, [])


def test_a_size_is_shown_in_the_units_of_a_disk():
    assert [bytes_text(size) for size in (500, 1_234_567, 1_234_567_890)] == ["0.5 kB", "1.2 MB", "1.2 GB"]
