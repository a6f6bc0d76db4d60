"""Options that share the cached question have the losses of separate forward passes."""

import numpy as np
import pytest
import torch
from tiny_models import VOCAB, make_model
from varlen_stand_in import install

from versatune_ds.domains import DomainSet
from versatune_ds.evaluation.choices import ChoiceSet
from versatune_ds.evaluation.option_losses import option_losses

ARCHITECTURES = {
    "llama": {},
    "qwen3": {},
    "mistral_window": {"sliding_window": 4},
    "gemma3_text": {
        "head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"],
    },
}  # fmt: skip
CASES = [(name, attention) for name in ARCHITECTURES for attention in ("sdpa", "eager")]


def options(question, *answers):
    """Return options with loss on the answer's tokens."""
    return [
        (np.array([*question, *answer], dtype=np.int32), np.array([False] * len(question) + [True] * len(answer)))
        for answer in answers
    ]


def choice_set(*questions):
    counts = [len(question) for question in questions]
    return ChoiceSet(
        domain_set=DomainSet(("law",)),
        options=tuple(option for question in questions for option in question),
        question_C=np.repeat(np.arange(len(counts)), counts),
        num_bytes_C=np.ones(sum(counts), dtype=np.int64),
        answer_Q=np.cumsum(counts) - 1,
        domain_id_Q=np.zeros(len(counts), dtype=np.int64),
    )


def random_tokens(*lengths):
    rng = np.random.default_rng(sum(lengths))
    return [rng.integers(3, VOCAB, size=length).tolist() for length in lengths]


LONG, SHORT, ONE = random_tokens(11, 3, 1)
CHOICES = choice_set(
    options(LONG, *random_tokens(4, 2, 6)),
    options(SHORT, [7, 8], [7, 9, 10]),  # answers with a common beginning
    options(ONE, [5], [6, 7]),  # nothing to share
    [*options([4, 5, 6, 7], [8]), *options([5, 6, 7], [8, 9])],  # truncated to a row at different places
)


@torch.no_grad()
def losses_alone(model):
    """Return each option's loss from transformers' own logits, one forward pass an option."""
    losses = []
    for ids, is_loss in CHOICES.options:
        tokens = torch.tensor(ids).long()
        log_p = model.causal_lm(input_ids=tokens[None]).logits[0, :-1].log_softmax(-1)
        token_losses = -log_p.gather(-1, tokens[1:, None])[:, 0]
        losses.append(float(token_losses[torch.tensor(is_loss[1:])].sum()))
    return losses


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_losses_equal_those_of_separate_forward_passes_for_every_batch_size(name, attention):
    model = make_model(name.removesuffix("_window"), attention=attention, **ARCHITECTURES[name]).eval()
    expected = losses_alone(model)
    for questions_per_batch in (1, 2, 8):
        found = option_losses(model, CHOICES, questions_per_batch=questions_per_batch)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_attention_without_a_mask_gives_way_to_a_mask_for_the_questions_cache(monkeypatch):
    expected = losses_alone(make_model("mistral", sliding_window=4).eval())
    install(monkeypatch)
    model = make_model("mistral", attention="auto", sliding_window=4).eval()
    np.testing.assert_allclose(option_losses(model, CHOICES, questions_per_batch=2), expected, rtol=1e-5)
    assert model.causal_lm.config._attn_implementation == "versatune_varlen"


def test_each_question_is_measured_by_exactly_one_process():
    model = make_model("llama").eval()
    shares = [option_losses(model, CHOICES, questions_per_batch=2, rank=rank, world_size=3) for rank in range(3)]
    assert [np.flatnonzero(share).tolist() for share in shares] == [[0, 1, 2, 7, 8], [3, 4], [5, 6]]
    np.testing.assert_allclose(np.sum(shares, axis=0), losses_alone(model), rtol=1e-5)


def test_a_questions_tokens_go_through_the_model_once(monkeypatch):
    model = make_model("llama").eval()
    num_tokens = []
    forward = model.causal_lm.model.embed_tokens.forward
    monkeypatch.setattr(
        model.causal_lm.model.embed_tokens, "forward", lambda ids: num_tokens.append(ids.numel()) or forward(ids)
    )
    option_losses(model, choice_set(options(LONG, *random_tokens(4, 4, 4))), questions_per_batch=1)
    assert num_tokens == [10, 3 * 5]
