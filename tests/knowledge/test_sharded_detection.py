"""Detection of a model whose weights are divided over the ranks (ZeRO-3) finds what one process finds."""

import numpy as np
import pytest
from base_model import detect_config, save_base_model
from ranks import run_ranks

from versatune_ds.config import LocalLabellerConfig
from versatune_ds.distributed import World
from versatune_ds.knowledge import likelihood
from versatune_ds.knowledge.generate import load_generator
from versatune_ds.knowledge.language_models.label_hf import load_label_model

WORLD_SIZE = 2


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base_model(tmp_path_factory.mktemp("base"))


def in_step(work, *, num_items, folder):
    """Return {item: result}; rank r works on items r, r + 2, ..., and the ranks make equally many passes for each."""
    folder.mkdir()
    found = run_ranks(
        lambda world: [(item, work(world, item)) for item in range(world.rank, num_items, WORLD_SIZE)],
        world_size=WORLD_SIZE,
        folder=folder,
    )
    return dict(pair for part in found for pair in part)


def kept(load):
    """Return a loader that loads once in each process."""
    loaded = []
    return lambda world: loaded[0] if loaded else loaded.append(load(world)) or loaded[0]


def test_sharded_evaluation_draws_the_sequences_of_one_process_although_they_end_at_different_lengths(base, tmp_path):
    config = detect_config(tmp_path, base, "detect.sampling.max_new_tokens=24", "detect.sampling.sequences_per_batch=1")
    alone = load_generator(config, World())
    ends = sorted({int(token) for batch in range(4) for token in alone._tokenizer(alone.draw(batch)[0].text).input_ids})
    some_ends = ends[:: max(len(ends) // 12, 1)]  # tokens that this model writes, so that sequences end early

    def stopping(generator):
        generator._end_ids = some_ends
        generator._causal_lm.generation_config.eos_token_id = some_ends
        return generator

    expected = {batch: stopping(alone).draw(batch) for batch in range(4)}
    assert len({drawn.num_tokens for [drawn] in expected.values()}) > 1
    sharded = kept(lambda world: stopping(load_generator(config, world, is_sharded=True)))
    found = in_step(lambda world, batch: sharded(world).draw(batch), num_items=4, folder=tmp_path / "ranks")
    assert found == expected


@pytest.mark.slow
def test_sharded_evaluation_measures_the_likelihood_of_one_process(base, tmp_path):
    config = detect_config(tmp_path, base, "detect.likelihood_rows=4", "data.row_tokens=128")
    opened = likelihood._open(config, None, World(), is_sharded=False)
    num_batches = WORLD_SIZE
    expected = [likelihood._nats_of_batch(config, num_batches, opened, batch) for batch in range(num_batches)]
    sharded = kept(lambda world: likelihood._open(config, None, world, is_sharded=True))
    found = in_step(
        lambda world, batch: likelihood._nats_of_batch(config, num_batches, sharded(world), batch),
        num_items=num_batches,
        folder=tmp_path / "ranks",
    )
    for batch, nats_E in enumerate(expected):
        np.testing.assert_allclose(found[batch], nats_E, rtol=1e-5)
    assert sum(expected).min() > 0


@pytest.mark.parametrize("texts_per_batch", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_sharded_evaluation_labels_as_one_process_does(base, tmp_path, texts_per_batch):
    config = detect_config(tmp_path, base)
    settings = LocalLabellerConfig(name_or_path=str(base), precision="fp32", texts_per_batch=texts_per_batch)
    batches = [[[5 + i + j] * (2 + i * j) for j in range(texts_per_batch)] for i in range(4)]

    def loaded(world, *, is_sharded):
        return load_label_model(
            settings, config.train, world, vocab_size=100, names_ids=[[4, 5, 6], [4, 7], [8]],
            probes=[[4, 5], [6, 7, 8]], is_sharded=is_sharded,
        )  # fmt: skip

    alone = loaded(World(), is_sharded=False)
    expected = [alone.scores(batch) for batch in batches]
    sharded = kept(lambda world: loaded(world, is_sharded=True))
    found = in_step(lambda world, i: sharded(world).scores(batches[i]), num_items=len(batches), folder=tmp_path / "r")
    assert alone.prompts_per_batch == texts_per_batch
    for i, scores_BK in enumerate(expected):
        np.testing.assert_allclose(found[i], scores_BK, rtol=1e-5)
