"""Attention on packed rows never crosses examples, in every architecture, implementation and sliding window.

`varlen` and `flash_attention_2` run over stand-ins of their kernels, `flex_attention` uncompiled.
"""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import VOCAB, A, B, C, make_model, pack, token_losses
from varlen_stand_in import H100, install, install_flash

ROW_TOKENS = 24
WINDOW = 4  # shorter than most examples below, so that it has an effect within them
ARCHITECTURES = {
    "llama": {},
    "qwen2": {},
    "qwen2_window": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {},
    "mistral_window": {"sliding_window": WINDOW},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": WINDOW},
    "gemma3_text": {
        "head_dim": 16, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"],
    },
}  # fmt: skip
IMPLEMENTATIONS = ("sdpa", "eager", "flex_attention", "varlen", "flash_attention_2")
# Scores of gemma2 are soft-capped: sdpa and varlen refuse that (test_attention_choice.py), flash's stand-in cannot.
CASES = [
    (name, attention)
    for name in ARCHITECTURES
    for attention in IMPLEMENTATIONS
    if name != "gemma2" or attention in ("eager", "flex_attention")
]


pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def model(request):
    name, attention = request.param
    model_type, keys = name.removesuffix("_window"), {"hidden_size": 64, **ARCHITECTURES[name]}
    with pytest.MonkeyPatch.context() as patch:
        if attention in ("flex_attention", "varlen"):
            install(patch, machine=dataclasses.replace(H100, packages=frozenset({"triton"})))
        is_flash = attention == "flash_attention_2"  # transformers looks for a GPU before it makes one
        made = make_model(model_type, attention="sdpa" if is_flash else attention, **keys).eval()
        if is_flash:
            install_flash(patch)
            made.causal_lm.config._attn_implementation = attention
        with torch.compiler.set_stance("force_eager"):
            yield made


@st.composite
def rows_with_a_changed_example(draw):
    """Draw examples of one row, the number of one of them, and other tokens of the same length for it."""
    lengths, room = [], ROW_TOKENS
    while room and len(lengths) < 5:
        lengths.append(draw(st.integers(1, room)))
        room -= lengths[-1]
        if draw(st.booleans()):
            break
    tokens = st.integers(3, VOCAB - 1)
    examples = [draw(st.lists(tokens, min_size=n, max_size=n)) for n in lengths]
    changed = draw(st.integers(0, len(examples) - 1))
    return examples, changed, draw(st.lists(tokens, min_size=lengths[changed], max_size=lengths[changed]))


@settings(max_examples=12)
@given(row=rows_with_a_changed_example())
def test_changing_one_example_leaves_its_neighbours_losses_unchanged_bit_for_bit(model, row):
    examples, changed, tokens = row
    before = token_losses(model, examples)
    after = token_losses(model, [*examples[:changed], tokens, *examples[changed + 1 :]])
    start = sum(len(example) for example in examples[:changed])
    end = start + len(tokens)
    assert torch.equal(before[:start], after[:start])
    assert torch.equal(before[end:], after[end:])


def test_an_example_has_the_same_losses_packed_and_alone(model):
    """To 2e-6: its position in the row changes the order of sums only."""
    alone = token_losses(model, [B])[: len(B)]
    assert alone[:-1].min() > 0
    for row, start in (([A, B, C], len(A)), ([C, B], len(C)), ([B, B, A], len(B))):
        packed = token_losses(model, row)[start : start + len(B)]
        torch.testing.assert_close(packed, alone, atol=2e-6, rtol=1e-5)


def test_gradients_of_one_example_do_not_reach_its_neighbours_tokens(model):
    """The loss of the middle example alone moves no embedding that only the others use."""
    if model.causal_lm.config._attn_implementation == "flex_attention":
        pytest.skip("torch's flex_attention has no backward on a CPU")
    row = pack([A, B, C])
    row["labels"][:, : len(A)] = -100
    row["labels"][:, len(A) + len(B) :] = -100
    embedding = model.causal_lm.get_input_embeddings().weight
    head = model.causal_lm.get_output_embeddings()
    is_tied = head.weight is embedding
    if is_tied:  # the head's gradient reaches every token, not through attention
        head.weight = torch.nn.Parameter(embedding.detach().clone())
    (gradient,) = torch.autograd.grad(model(**row).loss_sum, [embedding])
    if is_tied:
        head.weight = embedding
    assert gradient[B[:-1]].abs().sum() > 0
    assert gradient[[*A, *C]].abs().sum() == 0


def test_rows_of_a_micro_batch_do_not_see_each_other(model):
    first, second, other = pack([A, B]), pack([C, A]), pack([B, C, B])

    def losses(*rows):
        stacked = {name: torch.cat([row[name] for row in rows]) for name in first}
        with torch.no_grad():
            return model(**stacked, per_token=True).token_losses_N.reshape(2, -1)

    assert torch.equal(losses(first, second)[0], losses(first, other)[0])


def test_examples_see_each_other_if_positions_do_not_restart(model):
    """The negative control of the tests above."""

    def losses(examples):
        row = pack(examples)
        row["positions"] = torch.arange(ROW_TOKENS)[None]
        with torch.no_grad():
            return model(**row, per_token=True).token_losses_N[len(A) : len(A) + len(B)]

    assert not torch.equal(losses([A, B]), losses([A[::-1], B]))
