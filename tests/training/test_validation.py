"""Validation while training: under every ZeRO stage and with any sizes, all ranks get the sums of one process."""

import json

import numpy as np
import pytest
from chat_data import chat_rows, write_domains, write_jsonl
from ranks import run_ranks
from tiny_run import ROOT, be_trained, read_lines, tiny_config
from torch import device as torch_device

from versatune_ds.training.assemble import assemble_run
from versatune_ds.training.loop import measure_losses

DOMAINS = ("art", "code", "law")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write data with 41 held-out rows of law, one of code and none of art."""
    place = write_domains(tmp_path_factory.mktemp("data"), domains=DOMAINS)
    (place / "valid" / "art.jsonl").unlink()
    write_jsonl(place / "valid" / "code.jsonl", chat_rows(1, topic="alone"))
    write_jsonl(place / "valid" / "law.jsonl", chat_rows(41, topic="many"))
    return place


def config_of(folder, *overrides, name="run"):
    data = ("data.synthetic=null", f"data.folder={folder}", "data.row_tokens=64")
    return tiny_config(folder.parent / name, *data, *overrides, cache_dir=folder.parent / "cache")


def measured(folder, tmp_path, *, world_size, stage, rows=2):
    config = config_of(
        folder, f"train.deepspeed={ROOT / f'ds_configs/zero{stage}.json'}", f"validation.rows_per_micro_batch={rows}",
        name=f"{world_size}_{stage}_{rows}",
    )  # fmt: skip

    def work(world):
        run = assemble_run(config, world=world, device=torch_device("cpu"), is_fresh=True)
        losses = measure_losses(run)
        run.loader.close()
        run.monitor.finish(exit_code=0)
        return losses, run.validation.loader.num_micro_batches

    results = tmp_path / f"{world_size}_{stage}_{rows}"
    results.mkdir()
    return run_ranks(work, world_size=world_size, folder=results)


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    ((losses, _),) = measured(folder, tmp_path_factory.mktemp("alone"), world_size=1, stage=0)
    return losses


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "stage", "rows"),
    # (4, 3, 8): four ranks take 8 rows each of the 14 that there are, so that two of them see padding only
    [(2, 0, 2), (2, 1, 2), (2, 2, 2), (2, 3, 2), (4, 3, 8)],
)
def test_every_rank_gets_the_same_loss_sums_as_one_process(folder, tmp_path, alone, world_size, stage, rows):
    ranks = measured(folder, tmp_path, world_size=world_size, stage=stage, rows=rows)
    assert len({num_micro_batches for _, num_micro_batches in ranks}) == 1
    for losses, _ in ranks:
        assert losses.is_same_examples(alone)
        assert losses.loss_sum_E.tobytes() == ranks[0][0].loss_sum_E.tobytes()
        np.testing.assert_allclose(losses.loss_sum_E, alone.loss_sum_E, rtol=1e-5)
        assert losses.sum_by_domain(losses.num_loss_tokens_E > 0).tolist() == [0, 1, 41]
        assert np.isnan(losses.mean()).tolist() == [True, False, False]
        assert np.isnan(losses.standard_error()).tolist() == [True, True, False]


@pytest.mark.slow
def test_a_domain_without_held_out_rows_is_trained_on_and_has_no_signals(folder, tmp_path):
    config = config_of(folder, name="trained")
    run_ranks(lambda world: be_trained(config, world).step, world_size=2, folder=tmp_path)
    decisions = read_lines(config.run_dir / "decisions.jsonl")
    assert len(decisions) == 4
    for decision in decisions:
        assert sum(decision["weights_after"].values()) == pytest.approx(1)
        assert decision["losses"]["art"]["mean"] is None
        assert decision["losses"]["code"]["mean"] > 0
    # A known signal is what moves a weight: art, which has none, takes the mean of the others' and stays between them.
    before, after = decisions[0]["weights_before"], decisions[-1]["weights_after"]
    ratio = {name: after[name] / before[name] for name in DOMAINS}
    assert min(ratio["code"], ratio["law"]) < ratio["art"] < max(ratio["code"], ratio["law"])
    last = read_lines(config.run_dir / "metrics.jsonl")[-1]
    assert "NaN" not in json.dumps(last)
