"""The base model of adapters is identified by the content of its weight files."""

import json
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file
from tiny_models import build_arguments

from versatune_ds.config import LoraConfig, ModelConfig
from versatune_ds.distributed import World
from versatune_ds.model.build import build_causal_lm
from versatune_ds.training import base_weights
from versatune_ds.training.base_weights import base_weights_digest, identity_of_base


@pytest.fixture
def base(tmp_path):
    build_causal_lm(**build_arguments("llama")).save_pretrained(tmp_path / "base", max_shard_size="30KB")
    return tmp_path / "base"


@pytest.fixture
def config(base, tmp_path, monkeypatch):
    monkeypatch.setattr(base_weights, "cache_folder", lambda config: tmp_path / "cache")
    return SimpleNamespace(model=ModelConfig(name_or_path=str(base), lora=LoraConfig()))


def change(base):
    """Change one number in the last of the model's files."""
    path = max(base.glob("model-*.safetensors"))
    weights = load_file(path)
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, path, metadata={"format": "pt"})


def test_the_digest_is_of_the_weights_alone_and_of_runs_with_adapters_alone(base, config, tmp_path):
    assert len(list(base.glob("model-*.safetensors"))) > 1
    digest = base_weights_digest(config.model, cache_dir=tmp_path / "cache")
    (base / "config.json").write_text((base / "config.json").read_text() + "\n")
    assert base_weights_digest(config.model, cache_dir=tmp_path / "cache") == digest
    change(base)
    assert base_weights_digest(config.model, cache_dir=tmp_path / "cache") != digest
    for other in ({"name_or_path": str(base)}, {"from_config": {"model_type": "llama"}, "lora": {}}):
        assert base_weights_digest(ModelConfig(**other), cache_dir=tmp_path) is None


def test_a_resume_refuses_another_base_model_in_one_line(base, config, tmp_path):
    start = identity_of_base(config, saved=None, folder=None, world=World())
    folder = tmp_path / "step_00000002"
    assert identity_of_base(config, saved=json.loads(json.dumps(start)), folder=folder, world=World()) == start
    change(base)
    with pytest.raises(
        ValueError, match=r"step_00000002: contains adapters .* changed .*; restore .* --fresh$"
    ) as error:
        identity_of_base(config, saved=start, folder=folder, world=World())
    assert len(str(error.value).splitlines()) == 1


def test_a_run_whose_checkpoint_has_the_frozen_weights_keeps_writing_them(config, tmp_path):
    assert identity_of_base(config, saved={"zero_stage": 2}, folder=tmp_path, world=World()) == {}


def test_the_log_says_why_checkpoints_contain_weights_that_no_file_has(config, caplog):
    caplog.set_level("INFO")
    identity_of_base(config, saved=None, folder=None, world=World())
    random = SimpleNamespace(model=ModelConfig(from_config={"model_type": "llama"}, lora=LoraConfig()))
    assert identity_of_base(random, saved=None, folder=None, world=World()) == {}
    alone, too = caplog.messages
    assert alone.startswith("checkpoints contain the adapters alone; ")
    assert too.startswith("checkpoints contain the frozen weights too: model.from_config made them from run.seed, and ")
