"""A run's export is a model to start from: it says which run it is of; adapters alone are refused."""

import json

import pytest

from versatune_ds.config import ModelConfig
from versatune_ds.export.folder import export_folder
from versatune_ds.model.named_model import check_saved_model, exported_from


def export(output, *, step=200, files=("config.json",)):
    with export_folder(output, run_name="law", step=step) as folder:
        for name in files:
            (folder / name).write_text("{}")
    return output


def test_an_export_says_of_which_run_and_step_it_is(tmp_path):
    folder = export(tmp_path / "export")
    assert json.loads((folder / "versatune_export.json").read_text()) == {
        "run": "law",
        "step": 200,
        "files": ["config.json"],
    }
    assert exported_from(str(folder)) == "the run law, after step 200"
    check_saved_model(ModelConfig(name_or_path=str(folder)))
    assert exported_from(str(export(tmp_path / "earlier", step=None))) == "the run law"  # of an earlier version


@pytest.mark.parametrize("text", [None, "{", "[]", "{}"])
def test_a_folder_that_does_not_say_so_is_of_no_run(tmp_path, text):
    if text is not None:
        (tmp_path / "versatune_export.json").write_text(text)
    assert exported_from(str(tmp_path)) is None


def test_adapters_that_a_run_exported_alone_are_refused_with_the_command_that_merges_them(tmp_path):
    folder = export(tmp_path / "export", files=("adapter_config.json",))
    message = (
        r"^model\.name_or_path: .*/export contains adapters \(adapter_config\.json\), not a model: those of the run "
        r"law, after step 200; export them merged into their base model \(versatune export RUN --output FOLDER, "
    )
    with pytest.raises(ValueError, match=message) as raised:
        check_saved_model(ModelConfig(name_or_path=str(folder)))
    assert "\n" not in str(raised.value)
