"""What a token costs, counted by hand on small models."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from versatune_ds.training.throughput import Throughput, flops_per_token, peak_memory_gib


class Tied(nn.Module):
    """Look up 10 x 4, multiply by 4 x 3 and, in the head, by the embedding's own weight."""

    def __init__(self, *, is_tied):
        super().__init__()
        self.embedding, self.middle, self.head = nn.Embedding(10, 4), nn.Linear(4, 3), nn.Linear(4, 10, bias=False)
        if is_tied:
            self.head.weight = self.embedding.weight


def test_an_embedding_costs_no_flops_unless_it_is_tied_to_the_head():
    assert flops_per_token(Tied(is_tied=False)) == 6 * (4 * 3 + 4 * 10)
    assert flops_per_token(Tied(is_tied=True)) == 6 * (4 * 3 + 4 * 10)


def test_a_frozen_matrix_costs_no_weight_gradient():
    model = Tied(is_tied=False)
    model.head.weight.requires_grad_(False)
    assert flops_per_token(model) == 6 * 4 * 3 + 4 * 4 * 10


def test_only_the_experts_that_a_token_is_sent_to_count():
    """Two of eight: 6 * 10 of the 6 * 40 FLOPs of their weights."""

    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.config = AutoConfig.for_model("mixtral", num_local_experts=8, num_experts_per_tok=2)
            self.block = nn.Module()
            self.block.experts = nn.Module()
            self.block.experts.down_proj = nn.Parameter(torch.zeros(8, 5, 1))

    assert flops_per_token(Mixture()) == 6 * 10


def test_mfu_is_per_process_and_omitted_where_the_peak_is_unknown():
    known = Throughput(flops_per_token=48e9, peak_tflops=989.0, num_processes=2)
    assert known.metrics(20_000) == pytest.approx({"perf/tflops_per_process": 480.0, "perf/mfu": 480 / 989})
    unknown = Throughput(flops_per_token=48e9, peak_tflops=None, num_processes=1)
    assert set(unknown.metrics(1.0)) == {"perf/tflops_per_process"}


def test_peak_memory_grows_with_allocated_memory():
    before = peak_memory_gib()
    held = bytearray(200 << 20)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
    assert peak_memory_gib() - before > 0.05
