"""A GGUF file becomes a folder with the same logits, and every way it can be wrong is one line."""

import importlib.util
import json

import pytest
import torch
import transformers
from gguf_model import write_gguf
from tiny_run import tiny_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from versatune_ds import prepare, train
from versatune_ds.cli import main
from versatune_ds.config import ModelConfig
from versatune_ds.config.model import model_identity
from versatune_ds.model import gguf_file
from versatune_ds.model.build import check_model_weights
from versatune_ds.model.gguf_file import convert_gguf, read_header
from versatune_ds.training.prepared_data import load_or_train_tokenizer
from versatune_ds.training.saved_model import with_saved_model

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="needs the package gguf (extra `gguf`) to write a file"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_or_train_tokenizer(tiny_config(tmp_path_factory.mktemp("tokenizer")))


def converted(file, folder, **options):
    convert_gguf(read_header(file), folder=folder, **options)
    return folder


def logits_of(causal_lm):
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        return causal_lm.eval()(input_ids=ids).logits


def dequantised_logits(file, dtype):
    """What transformers' own load of the file computes, all weights dequantised."""
    settings = transformers.GgufConfig(dequantize=True) if hasattr(transformers, "GgufConfig") else None
    extra = {} if settings is None else {"quantization_config": settings}
    return logits_of(AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=dtype, **extra))


@pytest.mark.parametrize(
    ("weights", "precision", "expected"),
    [
        ("F32", None, "fp32"),
        ("F16", None, "fp32"),
        ("Q8_0", None, "bf16"),
        ("BF16", None, "bf16"),
        ("Q4_1", "fp32", "fp32"),
    ],
)
def test_the_converted_folder_has_exactly_the_logits_of_transformers_own_dequantised_load(
    tmp_path, tokenizer, weights, precision, expected
):
    file = write_gguf(tmp_path / "tiny.gguf", tokenizer, weights=weights)
    folder = converted(file, tmp_path / "folder", precision=precision)
    assert json.loads((folder / "gguf.json").read_text())["precision"] == expected
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[expected]
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert plain.dtype == dtype
    assert torch.equal(logits_of(plain), dequantised_logits(file, dtype))
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert check_model_weights(ModelConfig(name_or_path=str(folder)))
    plain.save_pretrained(tmp_path / "again")  # a model loaded from the file refuses this


def test_the_folder_has_the_files_tokenizer_and_template(tmp_path, tokenizer):
    folder = converted(write_gguf(tmp_path / "tiny.gguf", tokenizer), tmp_path / "folder")
    loaded = AutoTokenizer.from_pretrained(folder)
    text = "The court ruled that 3 of 4 claims fail; x = [1, 2]."
    assert loaded.is_fast
    assert len(loaded) == len(tokenizer)
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.eos_token_id == tokenizer.eos_token_id


def test_a_recipe_converts_its_file_once(tmp_path, tokenizer, caplog, monkeypatch):
    file = write_gguf(tmp_path / "tiny.gguf", tokenizer)
    config = tiny_config(tmp_path, "model.from_config=null", f"model.gguf_file={file}")
    first = with_saved_model(config)
    folder = tmp_path / "cache" / first.model.name_or_path.rpartition("/")[2]
    assert first.model.name_or_path == str(folder)
    assert folder.name.startswith("gguf-")
    assert len(load_or_train_tokenizer(first)) == len(tokenizer)
    # The config of a run names both; without the cache the folder is made again, with it nothing is read.
    assert with_saved_model(first) == first
    kept = (folder / "model.safetensors").read_bytes()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert with_saved_model(first) == first
    assert (folder / "model.safetensors").read_bytes() == kept
    monkeypatch.setattr(gguf_file, "convert_gguf", None)
    with caplog.at_level("INFO"):
        assert with_saved_model(config) == first
    assert "tiny.gguf was converted before" in caplog.text
    # The same content elsewhere, named through the folder that holds it, is the same model.
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "copy.gguf").write_bytes(file.read_bytes())
    keys = ("model.from_config=null", f"model.name_or_path={tmp_path / 'there'}", "model.gguf_file=copy.gguf")
    assert with_saved_model(tiny_config(tmp_path, *keys)).model.name_or_path == str(folder)


def test_a_config_without_a_file_is_unchanged_and_has_no_such_key(tmp_path):
    config = tiny_config(tmp_path)
    assert with_saved_model(config) == config
    assert "gguf_file" not in config.model_dump(mode="json")["model"]
    assert "gguf_file" not in model_identity(ModelConfig(gguf_file="a.gguf").model_dump(mode="json"))


def test_a_model_comes_from_one_place():
    with pytest.raises(
        ValueError, match=r"give exactly one of model.name_or_path \(or model.gguf_file\) and model.from"
    ):
        ModelConfig()
    with pytest.raises(ValueError, match=r"model.gguf_file: its config comes with it; leave out model.from_config"):
        ModelConfig(gguf_file="a.gguf", from_config={"model_type": "llama"})


def test_each_fault_of_a_file_is_one_line(tmp_path, tokenizer, capsys, monkeypatch):
    def fault(file, *options):
        assert main(["convert", str(file), "-o", str(tmp_path / "out"), *options]) == 2
        lines = capsys.readouterr().err.splitlines()
        return next(line for line in lines if line.startswith("versatune: "))

    assert "FILE: " in fault(tmp_path / "gone.gguf")
    assert "no such file; give the path of a .gguf file" in fault(tmp_path / "gone.gguf")
    (tmp_path / "text.gguf").write_text("{}")
    assert "is not a GGUF file" in fault(tmp_path / "text.gguf")
    good = write_gguf(tmp_path / "tiny.gguf", tokenizer)
    (tmp_path / "cut.gguf").write_bytes(good.read_bytes()[:1000])
    assert "cannot read" in fault(tmp_path / "cut.gguf")
    adapter = write_gguf(tmp_path / "adapter.gguf", tokenizer, kind="adapter")
    assert "contains adapter weights, not a model; merge" in fault(adapter)
    strange = write_gguf(tmp_path / "strange.gguf", tokenizer, architecture="clip")
    assert "transformers cannot read" in fault(strange)
    assert "architecture clip" in fault(strange)
    lacking = write_gguf(tmp_path / "lacking.gguf", tokenizer, omit="blk.1.ffn_up.weight")
    assert "lacks 1 weights (model.layers.1.mlp.up_proj.weight" in fault(lacking)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(gguf_file, "find_spec", lambda name: None)
    assert "needs the package gguf; pip install 'versatune_ds[gguf]'" in fault(good)


def test_a_file_without_a_tokenizer_needs_one_in_the_recipe(tmp_path, tokenizer):
    file = write_gguf(tmp_path / "bare.gguf", None)
    keys = ("model.from_config=null", f"model.gguf_file={file}")
    with pytest.raises(ValueError, match=r"^model.tokenizer: .*bare.gguf contains no tokenizer; give one"):
        with_saved_model(tiny_config(tmp_path, *keys))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    config = with_saved_model(tiny_config(tmp_path, *keys, f"model.tokenizer={tmp_path / 'tokenizer'}"))
    assert check_model_weights(config.model)


def test_a_fault_is_reported_under_the_key_that_names_the_file(tmp_path):
    (tmp_path / "text.gguf").write_text("{}")
    for key, others in (("model", ["model.from_config=null"]), ("reference.model", [])):
        config = tiny_config(tmp_path, *others, f"{key}.gguf_file={tmp_path / 'text.gguf'}")
        with pytest.raises(ValueError, match=rf"^{key}\.gguf_file: .*text\.gguf is not a GGUF file"):
            with_saved_model(config)
        config = tiny_config(tmp_path, *others, f"{key}.gguf_file=a.gguf", f"{key}.name_or_path=./nowhere")
        with pytest.raises(ValueError, match=rf"^{key}\.name_or_path: \./nowhere: no such folder; expected .* a\.gguf"):
            with_saved_model(config)


def test_convert_does_nothing_twice_and_replaces_nothing(tmp_path, tokenizer, capsys):
    file, out = write_gguf(tmp_path / "tiny.gguf", tokenizer), tmp_path / "out"
    words = ["convert", str(file), "--output", str(out)]
    assert main(words) == 0
    assert capsys.readouterr().out == f"{out}\n"
    made = (out / "model.safetensors").stat().st_mtime_ns
    assert main(words) == 0
    assert capsys.readouterr().out == f"{out} (bf16, converted before)\n"
    assert (out / "model.safetensors").stat().st_mtime_ns == made
    assert main([*words, "--precision", "fp32"]) == 2
    assert f"--output: {out} exists and was not converted from tiny.gguf" in capsys.readouterr().err


def test_commands_take_a_file_and_report_a_bad_one(tmp_path, tokenizer, capsys):
    file = write_gguf(tmp_path / "tiny.gguf", tokenizer)
    recipe = tmp_path / "recipe.yaml"
    keys = (f"model.gguf_file={file}", "model.from_config=null")
    recipe.write_text(json.dumps(tiny_config(tmp_path, *keys).model_dump(mode="json", exclude_defaults=True)))
    assert main(["inspect", str(recipe), "--steps", "0:1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 8  # the rows of one batch
    file.write_text("{}")
    for command in ("check", "train", "detect"):
        assert main([command, str(recipe)]) == 2
        assert f"model.gguf_file: {file} is not a GGUF file" in capsys.readouterr().err


def test_python_takes_a_file_as_the_commands_do(tmp_path, tokenizer):
    file = write_gguf(tmp_path / "tiny.gguf", tokenizer)
    keys = ("model.from_config=null", f"model.gguf_file={file}", "train.steps=1", "mixture.policy=uniform")
    config = tiny_config(tmp_path, *keys)
    assert prepare(config, quiet=True).loc[("general", "train"), "num_rows"] == 60
    run = train(config, quiet=True)
    assert run.config.model.name_or_path == with_saved_model(config).model.name_or_path
    assert run.config.model.gguf_file == str(file)
