"""One process of a node prepares; a node that does not see rank 0's disk prepares the same by itself."""

from pathlib import Path

import pytest
from ranks import run_ranks
from tiny_run import tiny_config

from versatune_ds.data.encoding.tokenizer import tokenizer_digest
from versatune_ds.distributed import World
from versatune_ds.training.mixture_start import forecast_epochs, mixture_table
from versatune_ds.training.prepared_data import prepare_once_per_node, prepare_recipe


@pytest.mark.slow
@pytest.mark.parametrize("is_shared", [True, False])
def test_every_rank_gets_the_same_data_and_tokenizer(tmp_path, is_shared):
    def work(world):
        node = 0 if is_shared else world.rank // 2
        config = tiny_config(tmp_path, cache_dir=tmp_path / f"cache_of_node_{node}")
        on_node = World(rank=world.rank, world_size=4, local_rank=world.rank % 2, launcher="test")
        tokenizer, data = prepare_once_per_node(config, on_node)
        return tokenizer_digest(tokenizer), data.digest, len(data.counts) > 0, data.train[0].folder.parent.parent.name

    results = run_ranks(work, world_size=4, folder=tmp_path)
    assert len({(tokenizer, data) for tokenizer, data, *_ in results}) == 1
    folders = [folder for *_, folder in results]
    if is_shared:
        assert [has_counts for *_, has_counts, _ in results] == [True, False, False, False]
    assert folders[:2] == ["cache_of_node_0"] * 2
    assert folders[2:] == (["cache_of_node_0"] if is_shared else ["cache_of_node_1"]) * 2


@pytest.mark.slow
def test_a_node_with_different_data_files_stops_with_the_reason(tmp_path):
    def work(world):
        config = tiny_config(tmp_path, f"data.synthetic.seed={world.rank}", cache_dir=tmp_path / f"node_{world.rank}")
        on_node = World(rank=world.rank, world_size=2, local_rank=0, launcher="test")
        prepare_once_per_node(config, on_node)

    with pytest.raises(AssertionError, match="RuntimeError: data files on this node differ from rank 0's"):
        run_ranks(work, world_size=2, folder=tmp_path)


def test_the_table_forecasts_passes_and_marks_a_domain_that_will_run_out(tmp_path):
    config = tiny_config(tmp_path, "data.max_epochs_per_domain=0.5", "train.steps=10", cache_dir=Path(tmp_path) / "c")
    data = prepare_recipe(config)
    sizes = [int(shards.lengths.sum()) for shards in data.train]
    weights_K = [0.5, 0.5, 0.0, 0.0, 0.0, 0.0]
    epochs_K = forecast_epochs(config, data, weights_K)
    assert epochs_K[0] == pytest.approx(0.5 * 10 * 8 * 128 / sizes[0])
    assert epochs_K[2] == 0
    _, _, code, _, third, *_ = mixture_table(config, data, weights_K).splitlines()
    assert code.split()[:3] == ["code", "0.500", "60"]
    assert code.endswith("ends at 0.5")
    assert not third.endswith("ends at 0.5")
