"""Detection finds the mixture that a base model was trained on; benchmarks/detect_truth.py does so at full size."""

import pytest
from base_model import detect_config
from chat_data import chat_rows, write_jsonl
from ranks import run_ranks
from tiny_run import be_trained, tiny_config

from versatune_ds.export.run_export import export_run
from versatune_ds.knowledge.detect import detect

TRUTH = {"code": 0.25, "law": 0.75}


@pytest.mark.slow
def test_detected_shares_are_those_the_base_model_was_trained_on(tmp_path):
    for name in TRUTH:
        for split, num_rows in (("train", 150), ("valid", 5)):
            rows = chat_rows(num_rows, topic=f"{name} {split}")
            write_jsonl(tmp_path / "data" / split / f"{name}.jsonl", rows)
    data = ("data.synthetic=null", f"data.folder={tmp_path / 'data'}", "data.loss_on=all")
    mixture = (f"mixture.prior={{code: {TRUTH['code']}, law: {TRUTH['law']}}}", "mixture.policy=constant")
    config = tiny_config(
        tmp_path, *data, *mixture, "train.steps=60", "train.learning_rate=1e-2", "mixture.update_every=60",
        "checkpoint.every=60",
    )  # fmt: skip
    run_ranks(lambda world: be_trained(config, world).step, world_size=1, folder=tmp_path)
    base = export_run(config.run_dir, output=tmp_path / "base")
    found = detect(
        detect_config(
            tmp_path, base, *data, *mixture, "detect.num_sequences=512", "detect.rounds=1",
            "detect.rows_per_domain=150", "detect.sampling.sequences_per_batch=256",
            "detect.sampling.max_new_tokens=40",
        ),
        num_processes=1,
    )  # fmt: skip
    shares = found.domain_set.to_dict(found.shares.shares_K)
    assert found.labeller["accuracy"] > 0.95
    # 512 draws scatter by 0.02; the rest is how well 60 steps teach the first word's probability.
    assert shares == pytest.approx(TRUTH, abs=0.1), found.rates()
