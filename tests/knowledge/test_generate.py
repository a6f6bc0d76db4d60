"""Drawing from a model: its own distribution, one batch for one number, sequences that stop at their end token."""

import pytest
import torch
from base_model import save_base_model

from versatune_ds.config import ModelConfig, SamplingConfig
from versatune_ds.data.encoding.templates import choose_template
from versatune_ds.data.encoding.tokenizer import load_tokenizer
from versatune_ds.knowledge.generate import SequenceGenerator, batch_seed
from versatune_ds.knowledge.sequence_start import sequence_start
from versatune_ds.model.build import build_causal_lm


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base_model(tmp_path_factory.mktemp("base"))


def load(base):
    tokenizer = load_tokenizer(base)
    model = ModelConfig(name_or_path=str(base))
    return build_causal_lm(model, precision="fp32", vocab_size=len(tokenizer), special_ids={}), tokenizer


def generator(base, **sampling):
    causal_lm, tokenizer = load(base)
    settings = SamplingConfig(**{"sequences_per_batch": 8, "max_new_tokens": 6, **sampling})
    return SequenceGenerator(causal_lm, tokenizer=tokenizer, sampling=settings)


def start_ids(tokenizer, *, prefix=""):
    template = choose_template(tokenizer)
    return sequence_start(tokenizer, prefix=prefix, template=template).token_ids


def test_a_batch_depends_on_its_number_and_the_seed_alone(base):
    first = generator(base)
    batches = [first.draw(0), first.draw(1), first.draw(0)]
    assert batches[0] == batches[2] != batches[1]
    torch.manual_seed(99)
    assert generator(base).draw(1) == batches[1]
    assert generator(base, seed=1).draw(0) != batches[0]


def test_drawing_does_not_change_the_global_random_state(base):
    torch.manual_seed(5)
    expected = torch.rand(3).tolist()
    torch.manual_seed(5)
    generator(base).draw(0)
    assert torch.rand(3).tolist() == expected


def test_seeds_of_batches_differ():
    assert len({batch_seed(seed, batch) for seed in range(10) for batch in range(100)}) == 1000


def test_the_models_own_generation_settings_do_not_narrow_the_distribution(base):
    causal_lm, tokenizer = load(base)
    causal_lm.generation_config.update(do_sample=True, top_k=1, repetition_penalty=5.0, temperature=0.01)
    settings = SamplingConfig(sequences_per_batch=8, max_new_tokens=6)
    drawn = SequenceGenerator(causal_lm, tokenizer=tokenizer, sampling=settings).draw(0)
    assert drawn == generator(base).draw(0)
    assert len({sequence.text for sequence in drawn}) == 8


def test_first_tokens_follow_the_models_own_probabilities(base):
    causal_lm, tokenizer = load(base)
    with torch.no_grad():
        causal_lm.model.norm.weight.mul_(12)  # tied weights make the beginning token likely to come again
        start = torch.tensor([start_ids(tokenizer)])
        expected = float(causal_lm(start).logits[0, -1].softmax(-1)[tokenizer.all_special_ids].sum())
    settings = SamplingConfig(sequences_per_batch=2000, max_new_tokens=1)
    drawn = SequenceGenerator(causal_lm, tokenizer=tokenizer, sampling=settings).draw(0)
    count = sum(sequence.is_empty for sequence in drawn)
    assert 0.05 < expected < 0.95
    assert count / 2000 == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 2000) ** 0.5)


def test_a_sequence_ends_with_the_first_end_token_and_counts_it(base):
    end = load_tokenizer(base).eos_token_id
    drawer = generator(base)
    found = drawer._sequence([10, 11, end, 12, end])
    assert (found.num_tokens, found.is_cut) == (4, False)
    assert found.text == load_tokenizer(base).decode([10, 11])
    assert drawer._sequence([10, 11, 12]).is_cut
    assert drawer._sequence([end]).is_empty


def test_a_prefix_is_part_of_every_sequence(base):
    drawn = generator(base, prefix="What does").draw(0)
    assert all(sequence.text.startswith("What does") for sequence in drawn)


def test_sequences_start_with_the_beginning_token_or_else_the_end_token(base):
    tokenizer = load_tokenizer(base)
    assert start_ids(tokenizer) == [tokenizer.bos_token_id]
    tokenizer.bos_token = None
    assert start_ids(tokenizer) == [tokenizer.eos_token_id]
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="nothing to start a sequence with"):
        start_ids(tokenizer)


def test_sequences_longer_than_the_model_has_positions_are_refused(base):
    with pytest.raises(ValueError, match=r"detect.sampling.max_new_tokens: 5000 .* the model has 2048 positions"):
        generator(base, max_new_tokens=5000)


def test_the_users_header_is_what_training_rows_begin_with_and_no_part_of_the_text(base):
    causal_lm, tokenizer = load(base)
    template = "{{ bos_token }}system: be kind.{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    start = sequence_start(tokenizer, prefix="user_header", template=template)
    assert tokenizer.decode(start.token_ids) == f"{tokenizer.bos_token}system: be kind.[user]"
    assert start.token_ids.count(tokenizer.bos_token_id) == 1
    settings = SamplingConfig(sequences_per_batch=8, max_new_tokens=6, prefix="user_header")
    drawn = SequenceGenerator(causal_lm, tokenizer=tokenizer, sampling=settings, template=template).draw(0)
    assert not any("kind" in sequence.text for sequence in drawn)
    assert max(sequence.num_tokens for sequence in drawn) == 7


def test_a_text_before_the_sequences_belongs_to_them(base):
    _, tokenizer = load(base)
    start = sequence_start(tokenizer, prefix="the law", template="")
    assert start.token_ids == [tokenizer.bos_token_id, *tokenizer.encode("the law", add_special_tokens=False)]
    assert start.num_hidden == 1


def test_a_template_that_prints_no_header_is_refused(base):
    _, tokenizer = load(base)
    with pytest.raises(
        ValueError, match=r"^detect\.sampling\.prefix: the chat template prints nothing before a user's"
    ):
        sequence_start(tokenizer, prefix="user_header", template="{{ messages[0].content }}")
