"""Which experts serve which domain: counted while training, by domain, layer and expert."""

import numpy as np
import pytest
import torch
from expert_models import MODELS
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import A, B, build_arguments, make_model, pack

from versatune_ds.model.build import build_causal_lm
from versatune_ds.model.domain_model import DomainModel
from versatune_ds.model.expert_load import expert_load_metrics


def build(model_type, *, checkpointing=False):
    arguments = build_arguments(model_type, **MODELS[model_type])
    model = arguments["model"].model_copy(update={"gradient_checkpointing": checkpointing})
    return DomainModel(build_causal_lm(**{**arguments, "model": model}), num_domains=3).train()


def counts_of(model, examples, *, domains):
    """Return the counts of a row of one example a domain, [K, L, X], after forward and backward."""
    row = pack(examples)
    segment = (row["positions"] == 0).cumsum(dim=1) - 1
    row["domain_ids"] = torch.tensor([*domains, 0])[segment]
    losses = model(**row, is_token=segment < len(examples))
    losses.loss_sum.backward()
    return losses.expert_counts_KLX


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("model_type", MODELS)
def test_every_token_of_a_domain_counts_for_the_two_experts_it_was_sent_to(model_type, checkpointing):
    counts_KLX = counts_of(build(model_type, checkpointing=checkpointing), [A, B], domains=[2, 0])
    assert counts_KLX.shape == (3, 2, 4)  # DeepSeek's first layer has no experts
    assert counts_KLX.sum(dim=2).tolist() == [[2 * len(B)] * 2, [0, 0], [2 * len(A)] * 2]


def test_the_counted_experts_are_those_of_the_routers_largest_logits():
    model = build("mixtral")
    counts_LX = counts_of(model, [A], domains=[1])[1]
    own = model.causal_lm.get_decoder()(input_ids=torch.tensor([A]), output_router_logits=True)
    for layer, logits_NX in enumerate(own.router_logits):
        chosen = logits_NX.topk(2, dim=1).indices
        assert counts_LX[layer].tolist() == torch.bincount(chosen.reshape(-1), minlength=4).tolist()


def test_experts_are_not_counted_in_evaluation_nor_in_a_model_without_any():
    model = build("mixtral").eval()
    assert model(**pack([A]), is_token=torch.ones(1, 24, dtype=torch.bool)).expert_counts_KLX is None
    assert make_model("llama").expert_load is None


def test_expert_load_is_summarised_by_entropy_and_the_largest_share():
    counts_KLX = np.array([[[5, 5, 0, 0], [8, 0, 0, 0]], [[2, 2, 2, 2]] * 2, [[0] * 4] * 2])
    metrics = expert_load_metrics(counts_KLX, ["law", "code", "art"])
    assert metrics == pytest.approx(
        {
            "domain/law/expert_load_entropy": (0.5 + 0.0) / 2,
            "domain/law/expert_load_largest": (0.5 + 1.0) / 2,
            "domain/code/expert_load_entropy": 1.0,
            "domain/code/expert_load_largest": 0.25,
            # Shares of law's second layer are 1 and 1/4 of code's: 1 / (5 / 8).
            "domain/law/expert_lift": 1.6,
            "domain/law/expert_lift_layer": 1,
            "domain/law/expert_lift_expert": 0,
            # Only code uses experts 2 and 3 of the first layer, with 1/4: 1/4 / (1 / 8).
            "domain/code/expert_lift": 2.0,
            "domain/code/expert_lift_layer": 0,
            "domain/code/expert_lift_expert": 2,
        }
    )


@settings(max_examples=25)
@given(st.lists(st.integers(0, 1000), min_size=2, max_size=8).filter(any))
def test_expert_entropy_lies_between_0_and_1_and_the_largest_share_above_an_equal_one(counts):
    metrics = expert_load_metrics(np.array([[counts]]), ["law"])
    entropy, largest = metrics["domain/law/expert_load_entropy"], metrics["domain/law/expert_load_largest"]
    assert -1e-12 <= entropy <= 1 + 1e-12
    assert 1 / len(counts) - 1e-12 <= largest <= 1
