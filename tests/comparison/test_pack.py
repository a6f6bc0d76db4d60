"""Results in one file: equal bytes for equal results, loaded elsewhere by content, refused where they differ."""

import io
import json
import tarfile

import pytest
import yaml

from versatune_ds.comparison.cells import cells_of
from versatune_ds.comparison.comparison_file import read_plan
from versatune_ds.comparison.kept_results import base_settings, folder_of, has_result, settings_of, settings_path
from versatune_ds.comparison.pack import load_results, load_start, write_pack
from versatune_ds.comparison.pack_file import read_pack

RECIPE = {
    "run": {"name": "shared"},
    "model": {"from_config": {"model_type": "llama"}},
    "train": {"steps": 10, "deepspeed": "zero.json"},
    "mixture": {"prior": "uniform"},
}
RUNS = {"uniform": {"mixture.policy": "uniform"}, "planned": {"mixture.prior": "{plan:mine}"}}


def make_machine(root, *, rows='{"text": "a"}\n', with_model=True, **changed):
    """Write a comparison with its data into a folder, a machine of its own, and return its plan."""
    for split in ("train", "test"):
        (root / "rows" / split).mkdir(parents=True)
        (root / "rows" / split / "law.jsonl").write_text(rows)
    (root / "zero.json").write_text("{}")
    recipe = {**RECIPE, "data": {"folder": str(root / "rows")}}
    recipe["train"] = {"steps": 10, "deepspeed": str(root / "zero.json")}
    (root / "shared.yaml").write_text(yaml.safe_dump(recipe))
    values = {
        "name": "mine",
        "output_dir": str(root / "out"),
        "recipe": "shared.yaml",
        "base": {"recipe": "shared.yaml"},
        "detect": False,
        "plans": {"mine": {"for": "mean"}},
        "seeds": [1, 2],
        "baseline": "uniform",
        "runs": RUNS,
        **changed,
    }
    (root / "mine.yaml").write_text(yaml.safe_dump(values))
    plan = read_plan(root / "mine.yaml", [])
    if with_model:
        (plan.start_folder / "base_model").mkdir(parents=True)
        (plan.start_folder / "base_model" / "model.safetensors").write_bytes(b"weights")
    return plan


def start_of(plan):
    return [f"model.name_or_path={plan.start_folder / 'base_model'}", "model.from_config=null"]


def make_results(plan, *, num):
    """Write a starting point, the base model's evaluation, and the results of the first runs."""
    (plan.start_folder / "plans").mkdir()
    for name in ("reference.json", "transfer.json", "plans/mine.json"):
        (plan.start_folder / name).write_text('{"weights": {"law": 1.0}}')
    plan.folder.mkdir(parents=True, exist_ok=True)
    (plan.folder / "base_evaluation.json").write_text('{"domains": {"law": {"loss": 3.0}}}')
    (plan.folder / "base_comparison.json").write_text(json.dumps(base_settings(plan, start_of(plan))))
    for cell in list(cells_of(plan))[:num]:
        folder_of(plan, cell).mkdir(parents=True)
        (folder_of(plan, cell) / "evaluation.json").write_text('{"domains": {"law": {"loss": 2.0}}}')
        (folder_of(plan, cell) / "metrics.jsonl").write_text('{"step": 1}\n')
        settings_path(plan, cell).parent.mkdir(exist_ok=True)
        settings_path(plan, cell).write_text(json.dumps(settings_of(plan, cell, start_of(plan))))


@pytest.fixture
def there(tmp_path):
    """A machine with three of four results, and their file."""
    plan = make_machine(tmp_path / "there")
    make_results(plan, num=3)
    write_pack(plan, tmp_path / "there.tar.gz")
    return plan, tmp_path / "there.tar.gz"


def load_both(plan, path):
    pack = read_pack(path)
    load_start(pack, plan)
    load_results(pack, plan, start_of(plan))
    return [cell.run_name for cell in cells_of(plan) if has_result(plan, cell, start_of(plan))]


def test_results_and_the_starting_point_are_loaded_on_a_machine_whose_folders_are_elsewhere(there, tmp_path):
    _, path = there
    here = make_machine(tmp_path / "here")
    assert load_both(here, path) == ["uniform-seed1", "planned-seed1", "uniform-seed2"]
    assert json.loads((here.folder / "base_evaluation.json").read_text())["domains"]["law"]["loss"] == 3.0
    assert (here.start_folder / "plans" / "mine.json").is_file()
    # What is packed again there is the same, byte for byte, and has no path of a machine.
    write_pack(here, tmp_path / "here.tar.gz")
    assert (tmp_path / "here.tar.gz").read_bytes() == path.read_bytes()
    pack = read_pack(path)
    assert not any(str(tmp_path).encode() in data for data in pack.files.values())
    assert str(tmp_path) not in json.dumps(pack.content)
    assert not any("safetensors" in name or "rows" in name for name in pack.files)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"rows": '{"text": "b"}\n'}, "contents.data: "),
        ({"set": {"train.steps": 11}}, "train.steps: 10 there, 11 here"),
    ],
)
def test_results_of_other_data_or_settings_are_not_loaded_and_named(there, tmp_path, caplog, changed, words):
    here = make_machine(tmp_path / "here", **changed)
    make_results(here, num=0)
    assert load_both(here, there[1]) == []
    assert words in caplog.text
    assert "uniform-seed1 is not loaded" in caplog.text


def test_results_from_another_base_model_are_not_loaded_and_both_are_named(there, tmp_path, caplog):
    here = make_machine(tmp_path / "here")
    (here.start_folder / "base_model" / "model.safetensors").write_bytes(b"others")
    make_results(here, num=0)
    assert load_both(here, there[1]) == []
    assert read_pack(there[1]).content["base_model"][:12] in caplog.text


def test_a_base_model_that_only_the_other_machine_has_is_named_by_its_digest(there, tmp_path):
    here = make_machine(tmp_path / "here", with_model=False)
    with pytest.raises(ValueError, match=r"start from base model [0-9a-f]{12}, which is not here; copy that machine's"):
        load_start(read_pack(there[1]), here)


def add_entry(path, name, *, kind=tarfile.REGTYPE):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.size = kind, "/etc", 0
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(entry, io.BytesIO(b""))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("../out.json", tarfile.REGTYPE), ("/out.json", tarfile.REGTYPE), ("runs", tarfile.SYMTYPE)],
)
def test_a_file_with_a_path_out_of_it_or_a_link_is_refused(tmp_path, name, kind):
    add_entry(tmp_path / "bad.tar.gz", name, kind=kind)
    with pytest.raises(ValueError, match=r"^--continue: .*bad\.tar\.gz: .*expected plain files below it; not read$"):
        read_pack(tmp_path / "bad.tar.gz")


def test_a_file_that_is_missing_cut_off_or_of_another_kind_is_refused_in_one_line(there, tmp_path):
    with pytest.raises(ValueError, match=r"^--continue: .*: no such file; "):
        read_pack(tmp_path / "nothing.tar.gz")
    cut = tmp_path / "cut.tar.gz"
    for data in (there[1].read_bytes()[:200], b"text"):
        cut.write_bytes(data)
        with pytest.raises(ValueError, match=r"^--continue: .*: damaged, or not written by"):
            read_pack(cut)


def test_a_result_is_refused_when_its_data_have_changed_in_place(there):
    plan, _ = there
    cell = next(cells_of(plan))
    kept = json.loads(settings_path(plan, cell).read_text())
    kept["contents"]["data"] = "another"
    settings_path(plan, cell).write_text(json.dumps(kept))
    with pytest.raises(ValueError, match="made with other settings"):
        has_result(plan, cell, start_of(plan))
