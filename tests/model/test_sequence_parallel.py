"""Attention over slices of rows: the losses and gradients of complete rows, and what is refused."""

import pytest
import torch
import torch.distributed as dist
from one_batch import micro_batch
from ranks import run_ranks
from tiny_models import A, B, C, build_arguments, pack
from transformers import AutoConfig

from versatune_ds.data.row_slices import row_share, slice_batch
from versatune_ds.model.build import build_causal_lm
from versatune_ds.model.domain_model import DomainModel, model_inputs
from versatune_ds.model.packed_rows import PackedRows, num_repeats
from versatune_ds.model.sequence_parallel import split_attention
from versatune_ds.model.slice_checks import (
    check_attention_slices,
    check_model_slices,
    check_row_slices,
    check_slices_give_the_rows,
)

WINDOW = 4  # shorter than the examples, so that it has an effect within them
MODELS = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "gemma3_text": {
        "head_dim": 16, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt2": {"num_key_value_heads": None, "intermediate_size": None},
}  # fmt: skip


def losses_and_gradients(world, model_type, *, num_slices):
    """Return the losses by domain and the gradients of two packed rows, each summed over the ranks."""
    causal_lm = build_causal_lm(**build_arguments(model_type, **MODELS[model_type]))
    group = split_attention(causal_lm, wanted="auto", num_slices=num_slices, world=world)
    model = DomainModel(causal_lm, num_domains=2, sequence_group=group)
    check_slices_give_the_rows(model.eval())
    rows = [pack([A, B, C]), pack([C, A])]
    for row in rows:
        row["domain_ids"] = ((row["positions"] == 0).cumsum(1) == 2).long()
    batch = micro_batch(rows, num_loss_tokens_global=1)
    share = row_share(rank=world.rank % num_slices, world_size=num_slices, num_slices=num_slices)
    model.zero_grad()
    losses = model(**model_inputs(slice_batch(batch, share), device=torch.device("cpu")))
    (losses.loss_sum * num_slices / world.world_size).backward()  # where N is 1, each rank has all rows
    total = losses.loss_sum_K * num_slices / world.world_size
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    for values in (total, *gradients.values()):
        dist.all_reduce(values)
    return total.tolist(), {name: values.numpy() for name, values in gradients.items()}


@pytest.mark.slow
def test_sequence_parallel_has_the_gradients_of_complete_rows_in_every_architecture(tmp_path):
    """With grouped heads, sliding windows, layers of two kinds and learned positions, on four ranks."""

    def all_ways(world):
        return {
            (name, num_slices): losses_and_gradients(world, name, num_slices=num_slices)
            for name in MODELS
            for num_slices in (1, 2, 4)
        }

    found = run_ranks(all_ways, world_size=4, folder=tmp_path)[0]
    for name in MODELS:
        expected, expected_gradients = found[name, 1]
        assert min(expected) > 1
        for num_slices in (2, 4):
            losses, gradients = found[name, num_slices]
            assert losses == pytest.approx(expected, rel=1e-5), (name, num_slices)
            for key, values in expected_gradients.items():
                assert gradients[key] == pytest.approx(values, abs=1e-5), (name, num_slices, key)


def test_sequence_parallel_refuses_a_model_that_mixes_tokens_outside_attention(tmp_path):
    def refusal(world):
        causal_lm = build_causal_lm(**build_arguments("llama"))
        group = split_attention(causal_lm, wanted="auto", num_slices=2, world=world)
        mix = lambda module, args, output: output + output.cumsum(dim=1)  # noqa: E731
        causal_lm.model.layers[0].mlp.register_forward_hook(mix)
        try:
            check_slices_give_the_rows(DomainModel(causal_lm, num_domains=1, sequence_group=group).eval())
        except ValueError as error:
            return str(error)

    for text in run_ranks(refusal, world_size=2, folder=tmp_path):
        assert text.startswith("train.sequence_parallel: 2 is not supported for LlamaForCausalLM: slices of a row")


def test_sequence_parallel_masks_by_example_past_and_window():
    rows = PackedRows(positions_BT=torch.tensor([[0, 1, 2, 0, 1]]), bounds={})
    assert rows.mask(None)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1],
    ]  # fmt: skip
    assert rows.mask(2)[0, 0, 2].int().tolist() == [0, 1, 1, 0, 0]
    assert rows.mask(2) is rows.mask(2)


@pytest.mark.parametrize(
    ("num_heads", "num_ranks", "expected"), [(2, 2, 1), (2, 4, 2), (1, 4, 4), (8, 4, 1), (4, 8, 2)]
)
def test_sequence_parallel_repeats_key_heads_as_seldom_as_the_ranks_allow(num_heads, num_ranks, expected):
    assert num_repeats(num_heads, num_query_heads=8, num_ranks=num_ranks) == expected


@pytest.mark.parametrize(
    ("model_type", "keys", "words"),
    [
        ("llama", {"num_attention_heads": 6, "hidden_size": 48}, r"4 does not divide the model's 6 attention heads"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, r"longest example of a slice \(dynamic\)"),
        ("gemma2", {}, "its scores are bounded"),
        ("qwen3_next", {}, "its layers are of type linear_attention"),
        ("mixtral", {}, "it has experts"),
    ],
)
def test_sequence_parallel_refuses_models_in_one_line(model_type, keys, words):
    config = AutoConfig.for_model(model_type, **{"num_attention_heads": 8, **keys})
    check_model_slices(config, num_slices=1)
    with pytest.raises(ValueError, match=rf"^train.sequence_parallel: .*{words}[^\n]*$"):
        check_model_slices(config, num_slices=4)


def test_sequence_parallel_refuses_rows_compilation_and_attention_without_slices():
    check_row_slices(4, row_tokens=128, is_compiled=False)
    with pytest.raises(ValueError, match=r"4 does not divide data.row_tokens=126"):
        check_row_slices(4, row_tokens=126, is_compiled=False)
    with pytest.raises(ValueError, match=r"model.compile=true"):
        check_row_slices(4, row_tokens=128, is_compiled=True)
    with pytest.raises(ValueError, match=r"^model.attention: flex_attention with train.sequence_parallel=2"):
        check_attention_slices("flex_attention", num_slices=2)
