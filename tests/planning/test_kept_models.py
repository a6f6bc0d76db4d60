"""Sums of kept weights in one model: exact weights, exact losses, adapters, and weights of another model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from kept_model_folders import TwoExamplesADomain, keep_adapter, keep_full, tiny_causal_lm
from transfer_tables import two_domain_table

from versatune_ds.config import LoraConfig
from versatune_ds.mixture.planning.predictor import PlanTask
from versatune_ds.model.trainable_parameters import add_adapters, save_adapters
from versatune_ds.planning.kept_models import KeptModels
from versatune_ds.planning.kept_runs import KeptRuns, _check_digests, check_losses, kept_folders
from versatune_ds.planning.kept_weights import MergedWeights, OtherWeightsError, open_kept_weights
from versatune_ds.planning.merge import MergedLosses

LAYER = "model.layers.1.mlp.up_proj"


@pytest.fixture
def kept(tmp_path):
    """Weights of two models that differ everywhere, in files."""
    return [open_kept_weights(keep_full(tiny_causal_lm(seed=seed), tmp_path / str(seed))) for seed in (1, 2)]


def own_losses(causal_lm):
    return KeptModels(causal_lm, [None, None], TwoExamplesADomain()).base


def test_equal_shares_of_two_models_are_their_weights_average_and_a_corner_is_the_model_itself(kept):
    causal_lm, one, two = (tiny_causal_lm(seed=seed) for seed in (0, 1, 2))
    merged = MergedWeights(causal_lm, kept)
    merged.set_mixture([0.5, 0.5])
    others = (dict(model.named_parameters()) for model in (one, two))
    for (name, found), first, second in zip(causal_lm.named_parameters(), *(o.values() for o in others), strict=True):
        assert torch.equal(found, (0.5 * first + 0.5 * second).detach()), name
    merged.set_mixture([0.0, 1.0])
    assert all(map(torch.equal, causal_lm.parameters(), two.parameters()))
    assert causal_lm.lm_head.weight is causal_lm.model.embed_tokens.weight


def test_the_losses_of_a_corner_are_those_of_the_domains_own_model(kept):
    models = KeptModels(tiny_causal_lm(seed=0), kept, TwoExamplesADomain())
    assert models.base.loss_sum_E.tolist() == own_losses(tiny_causal_lm(seed=0)).loss_sum_E.tolist()
    for k, seed in enumerate((1, 2)):
        own = own_losses(tiny_causal_lm(seed=seed))
        assert models.losses(np.eye(2)[k]).loss_sum_E.tolist() == own.loss_sum_E.tolist()
        tokens_M = models.token_losses(np.eye(2)[k])
        sums_E = np.bincount(models.token_examples, weights=tokens_M)
        assert sums_E == pytest.approx(own.loss_sum_E, rel=1e-6)
    merged = MergedLosses(models)
    predicted = merged.predict(np.array([[0.0, 1.0]]))
    assert predicted.losses_NK[0] == pytest.approx(own.mean())
    assert predicted.stderrs_NK[0] == pytest.approx(own.change_standard_error(models.base))
    models.losses = None  # known by now
    assert merged.predict(np.array([[0.0, 1.0]])).losses_NK.tolist() == predicted.losses_NK.tolist()


def test_a_domain_without_kept_weights_counts_as_the_base_model(kept):
    causal_lm = tiny_causal_lm(seed=0)
    MergedWeights(causal_lm, [kept[0], None]).set_mixture([0.25, 0.75])
    name = f"{LAYER}.weight"
    base, one = (tiny_causal_lm(seed=seed).get_parameter(name) for seed in (0, 1))
    assert torch.allclose(causal_lm.get_parameter(name), 0.25 * one + 0.75 * base, atol=1e-7)


@pytest.mark.parametrize(("config", "scale"), [({}, 2.0), ({"use_rslora": True}, 4 / 2**0.5)])
def test_adapters_add_their_scaled_products_to_the_base_models_weights(tmp_path, config, scale):
    down, up = torch.randn(2, 32), torch.randn(48, 2)
    folders = [
        keep_adapter(tmp_path / "a", layer=LAYER, down=down, up=up, **config),
        keep_adapter(tmp_path / "b", layer=LAYER, down=down, up=-2 * up, **config),
    ]
    causal_lm = tiny_causal_lm(seed=0)
    merged = MergedWeights(causal_lm, [open_kept_weights(folder) for folder in folders])
    base = tiny_causal_lm(seed=0)
    for weights, factor in (([1.0, 0.0], 1.0), ([0.5, 0.5], -0.5), ([0.75, 0.25], 0.25)):
        merged.set_mixture(weights)
        for name, found in causal_lm.named_parameters():
            change = factor * scale * (up @ down) if name == f"{LAYER}.weight" else 0.0
            assert torch.allclose(found, base.get_parameter(name) + change, atol=1e-5), name


def test_adapters_as_a_run_keeps_them_change_what_peft_changes(tmp_path):
    pytest.importorskip("peft")
    causal_lm = tiny_causal_lm(seed=0)
    add_adapters(causal_lm, LoraConfig(rank=2, alpha=6, target_modules=("q_proj", "up_proj")))
    layers = {name: module for name, module in causal_lm.named_modules() if hasattr(module, "lora_B")}
    for layer in layers.values():
        torch.nn.init.normal_(layer.lora_B["default"].weight)
    (tmp_path / "model").mkdir()
    save_adapters(causal_lm, tmp_path / "model", base_model=None)
    kept = open_kept_weights(tmp_path / "model")
    assert kept.names() == {f"{name}.weight" for name in layers}
    assert len(layers) == 4
    for name, layer in layers.items():
        assert torch.allclose(kept.read(f"{name}.weight"), layer.get_delta_weight("default"), atol=1e-6)


def test_adapters_of_a_layer_with_a_transposed_weight_are_transposed(tmp_path):
    down, up = torch.randn(2, 32), torch.randn(48, 2)
    folder = keep_adapter(tmp_path / "a", layer="x", down=down, up=up, fan_in_fan_out=True)
    assert torch.equal(open_kept_weights(folder).read("x.weight"), 2 * (up @ down).T)


def test_dora_adapters_are_refused(tmp_path):
    folder = keep_adapter(tmp_path / "a", layer="x", down=torch.ones(1, 1), up=torch.ones(1, 1), use_dora=True)
    with pytest.raises(ValueError, match=r"use_dora: DoRA adapters cannot be averaged; plan with --planner transfer"):
        open_kept_weights(folder)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_hidden_layers": 1}, r"9 weights are missing, such as model\.layers\.1"),
        ({"num_hidden_layers": 3}, r"9 weights are unknown, such as model\.layers\.2"),
        ({"intermediate_size": 40}, r"6 weights are of another shape, such as model\.layers\.0\.mlp"),
    ],
)
def test_weights_of_another_architecture_are_refused(kept, tmp_path, keys, message):
    other = open_kept_weights(keep_full(tiny_causal_lm(seed=1, **keys), tmp_path / "other"))
    with pytest.raises(OtherWeightsError, match=message) as raised:
        MergedWeights(tiny_causal_lm(), [kept[0], other])
    assert raised.value.number == 1


def test_a_folder_without_weights_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read its weights: .* has no model\.safetensors"):
        open_kept_weights(tmp_path)


def test_weights_that_were_not_kept_or_are_gone_are_one_line_with_the_command(tmp_path):
    task = PlanTask(table=two_domain_table(), num_steps=1, num_tokens=1.0, folder=tmp_path)
    with pytest.raises(
        ValueError, match=r"^transfer.json: no weights of code; measure again with versatune reference "
    ):
        kept_folders(task)
    object.__setattr__(task.table.sources["code"], "model", "reference/tiny/code/model")
    (tmp_path / "reference/tiny/law/model").mkdir(parents=True)
    gone = "the folders are gone of the weights of code; .* reference.keep_models=true --domains code --fresh$"
    with pytest.raises(ValueError, match=gone):
        kept_folders(task)


def test_a_model_whose_losses_are_not_those_of_the_table_is_refused(kept):
    losses = KeptModels(tiny_causal_lm(), kept, TwoExamplesADomain()).base
    task = PlanTask(table=two_domain_table(), num_steps=1, num_tokens=1.0, folder=Path())
    with pytest.raises(ValueError, match=r"^transfer.json: the base model has a loss of 4.* on law now, and 2.0000 in"):
        check_losses(task, losses, name=None)
    near = replace(task.table, base_losses_K=losses.mean() * 1.01)
    check_losses(replace(task, table=near), losses, name=None)


def test_another_tokenizer_or_other_held_out_rows_are_refused():
    table = replace(two_domain_table(), provenance={"digests": {"tokenizer": "a", "mask": "b"}})
    task = PlanTask(table=table, num_steps=1, num_tokens=1.0, folder=Path())
    _check_digests(task, {"tokenizer": "a", "mask": "b", "held-out split": "c"})
    with pytest.raises(ValueError, match=r"^transfer.json: its tokenizer is another than the recipe's, .* --fresh$"):
        _check_digests(task, {"tokenizer": "x", "mask": "b"})


def test_token_losses_are_computed_once_and_again_for_other_weights_or_rows(kept, tmp_path):
    models = KeptModels(tiny_causal_lm(), kept, TwoExamplesADomain())
    asked = []
    compute = models.token_losses
    models.token_losses = lambda weights_K: asked.append(weights_K.tolist()) or compute(weights_K)

    def runs(digest):
        return KeptRuns(
            models=models, folders={"law": tmp_path / "1", "code": tmp_path / "2"}, cache_dir=tmp_path / "cache",
            rows_digest=digest,
        )  # fmt: skip

    first = runs("rows").cached_token_losses("law", np.array([1.0, 0.0]))
    assert runs("rows").cached_token_losses("law", np.array([1.0, 0.0])).tolist() == first.tolist()
    assert first.dtype == np.float32
    assert asked == [[1.0, 0.0]]
    runs("rows").cached_token_losses("code", np.array([0.0, 1.0]))
    runs("other rows").cached_token_losses("law", np.array([1.0, 0.0]))
    (tmp_path / "1" / "config.json").write_text(json.dumps({}))
    runs("rows").cached_token_losses("law", np.array([1.0, 0.0]))
    assert len(asked) == 4


def test_a_full_gpu_is_one_line_with_what_to_do(kept, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("versatune_ds.planning.kept_models.losses_without_engine", full)
    with pytest.raises(ValueError, match=r"^--planner: out of GPU memory; set validation\.rows_per_micro_batch=1"):
        KeptModels(tiny_causal_lm(), kept, TwoExamplesADomain())
