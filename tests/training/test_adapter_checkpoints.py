"""Runs with adapters, also beside weights in 4 bits: small checkpoints, exact resumes, one unchanged base model."""

import functools
import json

import pytest
import torch
from base_model import save_base_model
from ranks import run_ranks
from safetensors.torch import load_file, save_file
from tiny_run import be_trained, losses_by_step, tiny_config
from transformers import AutoModelForCausalLM

from versatune_ds.engine.checkpoint import open_weights
from versatune_ds.export.run_export import export_run
from versatune_ds.run_folder.checkpoint_files import complete_checkpoints, read_state
from versatune_ds.training import assemble

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Save a model with random weights, wide enough that they are most of a checkpoint."""
    return save_base_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def train(tmp_path, base):
    """Return a function that trains adapters of the base model, by default on two ranks; it returns the config."""

    def train(name, *overrides, before=lambda: None, num_ranks=2, **options):
        keys = ("model.from_config=null", f"model.name_or_path={base}", "model.lora={rank: 2, dropout: 0.1}")
        config = tiny_config(
            tmp_path, f"run.name={name}", *keys, "train.steps=4", "checkpoint.every=2", "mixture.update_every=50",
            "train.rows_per_batch=4", *overrides,
            cache_dir=base.parent / "cache",
        )  # fmt: skip
        results = tmp_path / f"results_{len(list(tmp_path.iterdir()))}"
        results.mkdir()

        def work(world):
            before()
            be_trained(config, world, **options)

        run_ranks(work, world_size=num_ranks, folder=results)
        return config

    return train


def newest(config):
    return complete_checkpoints(config.run_dir)[0]


def num_bytes(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def as_an_earlier_version():
    """Write frozen weights into checkpoints, and no digest of the base model."""
    assemble.identity_of_base = lambda *arguments, **settings: {}


def check_same_end(left, right):
    """Check that two runs have the same losses and end with the same adapters, bit for bit."""
    assert losses_by_step(left.run_dir) == losses_by_step(right.run_dir)
    weights, others = (open_weights(newest(config)) for config in (left, right))
    trained = [name for name in weights if "lora_" in name]
    assert trained
    assert all(torch.equal(weights[name].contiguous(), others[name].contiguous()) for name in trained)


def check_adapters_alone(config):
    """Check that a checkpoint has the adapters and the digest of the base model, and nothing of its weights."""
    assert all("lora_" in name for name in open_weights(newest(config)))
    assert len(read_state(newest(config))["identity"]["base_weights"]) == 32


def change_one_weight(base):
    """Change the base model's file in one number, and return a function that restores it."""
    path = base / "model.safetensors"
    before = path.read_bytes()
    weights = load_file(path)
    weights["model.norm.weight"][0] += 1
    save_file(weights, path, metadata={"format": "pt"})
    return lambda: path.write_bytes(before)


def test_a_checkpoint_of_adapters_leaves_the_base_model_out_and_resumes_exactly(train, base, tmp_path):
    whole = train("whole")
    check_adapters_alone(whole)
    train("stopped", stop_after=2)
    check_same_end(whole, train("stopped"))
    # A base model that has changed is refused. (That a resume does so is tested in test_base_weights.py.)
    restore = change_one_weight(base)
    with pytest.raises(RuntimeError, match=r"have changed since it was saved; restore .* --lora adapter$"):
        export_run(whole.run_dir, output=tmp_path / "merged")
    assert (
        export_run(whole.run_dir, output=tmp_path / "alone", lora="adapter") / "adapter_model.safetensors"
    ).is_file()
    restore()
    # A run that an earlier version began has the frozen weights in its checkpoints, resumes, and keeps writing them.
    train("earlier", before=as_an_earlier_version, stop_after=2)
    earlier = train("earlier")
    check_same_end(whole, earlier)
    assert "base_weights" not in read_state(newest(earlier))["identity"]
    assert num_bytes(newest(whole)) < num_bytes(newest(earlier)) / 2
    export_run(earlier.run_dir, output=tmp_path / "merged")


def test_a_checkpoint_of_adapters_resumes_on_another_number_of_ranks(train):
    settings = ("model.lora={rank: 2}",)
    whole = train("whole", *settings)
    train("moved", *settings, stop_after=2)
    moved = train("moved", *settings, num_ranks=1)
    # The dropout of attention depends on the rank; lost adapters or moments would change losses ten times as much.
    assert losses_by_step(moved.run_dir) == pytest.approx(losses_by_step(whole.run_dir), rel=2e-4)
    check_adapters_alone(moved)


def test_adapters_beside_weights_in_4_bits_train_resume_and_merge_into_the_unquantised_base(train, base, tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install -e '.[qlora]'")
    peft = pytest.importorskip("peft", reason="needs peft: pip install -e '.[qlora]'")
    settings = ("model.load_in_4bit=true", "model.gradient_checkpointing=true", "train.learning_rate=0.03")
    whole = train("whole", *settings)
    check_adapters_alone(whole)
    train("stopped", *settings, stop_after=2)
    check_same_end(whole, train("stopped", *settings))
    assert "quantization_config" not in json.loads((whole.run_dir / "model" / "config.json").read_text())
    # Merged: the unquantised base with the adapters, not the model in 4 bits.
    merged = export_run(whole.run_dir, output=tmp_path / "merged")
    alone = export_run(whole.run_dir, output=tmp_path / "alone", lora="adapter")
    ids = torch.arange(3, 15)[None]
    load = functools.partial(AutoModelForCausalLM.from_pretrained, dtype=torch.float32)
    with_adapters = peft.PeftModel.from_pretrained(load(base), alone)(ids).logits
    torch.testing.assert_close(load(merged)(ids).logits, with_adapters, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(load(base)(ids).logits, with_adapters, atol=1e-2)
