"""An exported model is the trained one: in bounded memory, in one file or several, adapters merged or alone."""

import json
import os
import shutil
import weakref

import numpy as np
import peft
import pytest
import torch
from base_model import save_base_model
from ranks import run_ranks
from safetensors.torch import load_file, save_file
from tiny_run import ROOT, be_trained, read_lines, tiny_config
from transformers import AutoModelForCausalLM, AutoTokenizer, dynamic_module_utils

from versatune_ds.evaluation.data import Request, evaluation_data
from versatune_ds.evaluation.measure import as_evaluation, measure
from versatune_ds.export.run_export import export_run
from versatune_ds.model import weight_files
from versatune_ds.model.weight_files import write_weights
from versatune_ds.reference.model_storage import keep_run_model


class WeightOnDisk:
    """Stand-in for a weight that is read on demand."""

    dtype = torch.float32

    def __init__(self, *shape):
        self.shape = torch.Size(shape)

    def contiguous(self):
        return torch.arange(self.shape.numel(), dtype=torch.float32).reshape(self.shape)


def test_only_the_weights_of_one_file_are_in_memory_at_a_time(tmp_path, monkeypatch):
    weights = {f"w{i}": WeightOnDisk(10, 25) for i in range(20)}  # 1000 bytes each
    written, num_bytes = [], []

    def save(tensors, path, **settings):
        assert not [name for name, tensor in written if tensor() is not None]
        written.extend((name, weakref.ref(tensor)) for name, tensor in tensors.items())
        num_bytes.append(sum(tensor.untyped_storage().nbytes() for tensor in tensors.values()))
        save_file(tensors, path, **settings)

    monkeypatch.setattr(weight_files, "save_file", save)
    assert len(write_weights(weights, folder=tmp_path, dtype=torch.float32, max_shard_size="5KB")) == 4
    assert num_bytes == [5000] * 4
    assert [name for name, _ in written] == list(weights)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 20000}
    for name, weight in weights.items():
        assert torch.equal(load_file(tmp_path / index["weight_map"][name])[name], weight.contiguous())


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_weight_files_get_the_permissions_of_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_weights({"a": torch.ones(3)}, folder=tmp_path, dtype=torch.float32)
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == mode


def test_weights_of_an_earlier_export_are_removed_and_integers_keep_their_dtype(tmp_path):
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"old")
    for name in ("model.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_text("{}")
    weights = {"a": torch.ones(3), "mask": torch.ones(2, dtype=torch.int64)}
    assert write_weights(weights, folder=tmp_path, dtype=torch.bfloat16) == ["model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    written = load_file(tmp_path / "model.safetensors")
    assert (written["a"].dtype, written["mask"].dtype) == (torch.bfloat16, torch.int64)


@pytest.mark.parametrize("size", ["much", "5XB", ""])
def test_an_invalid_shard_size_is_refused_before_anything_is_removed(tmp_path, size):
    (tmp_path / "model.safetensors").write_bytes(b"old")
    with pytest.raises(ValueError, match=r"^--max-shard-size: .*expected a size such as 500MB or 5GB"):
        write_weights({"a": torch.ones(3)}, folder=tmp_path, dtype=torch.float32, max_shard_size=size)
    assert (tmp_path / "model.safetensors").exists()


def train(tmp_path, *overrides, world_size=1, name="run"):
    config = tiny_config(
        tmp_path / name, "train.steps=4", "mixture.update_every=2", "checkpoint.every=2", *overrides,
        cache_dir=tmp_path / "cache",
    )  # fmt: skip
    (tmp_path / f"{name}_results").mkdir()
    run_ranks(
        lambda world: be_trained_and_kept(config, world), world_size=world_size, folder=tmp_path / f"{name}_results"
    )
    return config


def be_trained_and_kept(config, world):
    """Train, and keep the weights from memory too, as `versatune reference` does."""
    run = be_trained(config, world)
    keep_run_model(run)
    return run.step


def check_kept_model(config, exported):
    """Check that the weights kept from memory are those exported from the checkpoint of the same step."""
    kept, model = (AutoModelForCausalLM.from_pretrained(folder) for folder in (config.run_dir / "model", exported))
    torch.testing.assert_close(kept.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert [path.name for path in (config.run_dir / "model").glob("*.safetensors")] == ["model.safetensors"]


def losses_of(folder, config):
    """Return the held-out losses by domain of an exported model."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    causal_lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    request = Request(config=config, split="valid", choices={}, num_exact=0)
    data = evaluation_data(request, tokenizer=tokenizer)
    found = as_evaluation(measure(causal_lm, tokenizer, data, rows_per_micro_batch=4), data)
    return dict(zip(found.domain_set, found.losses.mean(), strict=True))


def recorded_losses(config, *, step):
    (line,) = [
        line
        for line in read_lines(config.run_dir / "metrics.jsonl")
        if line["step"] == step and "validation/loss" in line
    ]
    return {
        key.split("/")[1]: value for key, value in line.items() if key.startswith("domain/") and key.endswith("/loss")
    }


def check_losses(folder, config, *, step):
    found, recorded = losses_of(folder, config), recorded_losses(config, step=step)
    assert found.keys() == recorded.keys()
    np.testing.assert_allclose([found[name] for name in recorded], list(recorded.values()), rtol=1e-5)


@pytest.mark.slow
def test_a_zero_3_model_is_exported_in_several_files_and_loads_with_the_losses_of_its_step(tmp_path, capsys):
    config = train(tmp_path, f"train.deepspeed={ROOT / 'ds_configs' / 'zero3.json'}", world_size=2)
    capsys.readouterr()
    folder = export_run(config.run_dir, output=tmp_path / "model", max_shard_size="40KB")
    assert capsys.readouterr().out == ""  # DeepSpeed prints a lot while it reads
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    check_losses(folder, config, step=4)
    check_kept_model(config, folder)
    export_run(config.run_dir, output=folder, step=2)
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]
    check_losses(folder, config, step=2)
    assert AutoTokenizer.from_pretrained(folder).chat_template
    card = (folder / "README.md").read_text()
    snippet = card.split("```python\n")[1].split("```")[0].replace("PATH", str(folder))
    exec(compile(snippet, "README.md", "exec"), {})  # the example in the card must run
    assert "weights after step 2 of 4" in card
    assert (
        f"| law | {recorded_losses(config, step=0)['law']:.3f} | {recorded_losses(config, step=2)['law']:.3f} |" in card
    )
    assert str(tmp_path) not in card


@pytest.mark.slow
def test_a_corrupt_newest_checkpoint_is_logged_and_the_one_before_it_is_exported(tmp_path, caplog):
    config = train(tmp_path, f"train.deepspeed={ROOT / 'ds_configs' / 'zero0.json'}")
    newest = config.run_dir / "checkpoints" / "step_00000004"
    (newest / "versatune.json").write_text("{}")
    folder = export_run(config.run_dir, output=tmp_path / "model")
    assert "step_00000004 is corrupt (versatune.json)" in caplog.text
    check_losses(folder, config, step=2)
    with pytest.raises(RuntimeError, match="is corrupt"):
        export_run(config.run_dir, output=tmp_path / "other", step=4)
    shutil.rmtree(newest)
    with pytest.raises(ValueError, match=r"^--step 4: .* there are those of 2$"):
        export_run(config.run_dir, output=tmp_path / "other", step=4)
    with pytest.raises(ValueError, match=r"^--lora adapter: the run trained no adapters"):
        export_run(config.run_dir, output=tmp_path / "other", lora="adapter")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_adapters_are_merged_or_written_alone_with_the_same_losses(tmp_path, stage):
    base = train(tmp_path, name="base")
    check_kept_model(base, export_run(base.run_dir, output=tmp_path / "base_model"))
    config = train(
        tmp_path, "model.from_config=null", f"model.name_or_path={tmp_path / 'base_model'}", "model.lora={rank: 4}",
        f"train.deepspeed={ROOT / f'ds_configs/zero{stage}.json'}", "train.learning_rate=0.03",
        world_size=2, name="lora",
    )  # fmt: skip
    merged = export_run(config.run_dir, output=tmp_path / "merged", max_shard_size="40KB")
    check_losses(merged, config, step=4)
    assert (
        abs(recorded_losses(config, step=4)["law"] - recorded_losses(config, step=0)["law"]) > 1e-3
    )  # the adapters change the loss
    adapter = export_run(config.run_dir, output=tmp_path / "adapter", lora="adapter")
    assert not (adapter / "config.json").exists()
    kept, alone = (load_file(f / "adapter_model.safetensors") for f in (config.run_dir / "model", adapter))
    torch.testing.assert_close(kept, alone, rtol=0, atol=0)
    assert not list((config.run_dir / "model").glob("model*.safetensors"))
    ids = torch.arange(12)[None]
    expected = AutoModelForCausalLM.from_pretrained(merged)(ids).logits
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(adapter).eval()
    torch.testing.assert_close(loaded(ids).logits, expected, atol=1e-5, rtol=1e-5)
    assert "adapters only" in (adapter / "README.md").read_text()
    both = export_run(config.run_dir, output=adapter)  # into the same folder: the adapters there must not be loaded too
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(both)(ids).logits, expected)
    assert not list(both.glob("adapter*"))
    with pytest.raises(ValueError, match=r"^--output: .*base_model is the model the run began from"):
        export_run(config.run_dir, output=tmp_path / "base_model")


def save_model_of_its_own_code(folder):
    """Save a base model with its class in a file beside it."""
    base = save_base_model(folder)
    (base / "configuration_own.py").write_text(
        "from transformers import LlamaConfig\n\n\nclass OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
    )
    (base / "modeling_own.py").write_text(
        "from transformers import LlamaForCausalLM\n\nfrom .configuration_own import OwnConfig\n\n\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((base / "config.json").read_text()) | {"model_type": "own", "architectures": ["OwnForCausalLM"]}
    classes = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    (base / "config.json").write_text(json.dumps({**config, "auto_map": classes}))
    return base


@pytest.mark.slow
def test_a_model_with_code_of_its_own_is_exported_with_that_code(tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    base = save_model_of_its_own_code(tmp_path)
    own = ("model.from_config=null", f"model.name_or_path={base}", "model.trust_remote_code=true")
    config = train(tmp_path, *own)
    shutil.rmtree(base)
    folder = export_run(config.run_dir, output=tmp_path / "model")
    causal_lm = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert type(causal_lm).__name__ == "OwnForCausalLM"
    assert type(causal_lm).__module__.startswith("transformers_modules.")
