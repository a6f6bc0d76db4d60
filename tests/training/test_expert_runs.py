"""A run of a mixture of experts: trained under ZeRO-3, logged by domain, exported unchanged."""

import json
import shlex

import numpy as np
import pytest
import torch
from ranks import run_ranks
from tiny_run import ROOT, be_trained, read_lines, tiny_config
from transformers import AutoModelForCausalLM

from versatune_ds.config import load_config
from versatune_ds.data.synthetic import DOMAIN_NAMES
from versatune_ds.export.run_export import export_run
from versatune_ds.mixture.expert_shares import ExpertCounts
from versatune_ds.model.build import config_from_mapping
from versatune_ds.report.page import render_page
from versatune_ds.report.series import read_series

QWEN = {
    "model_type": "qwen3_moe", "hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 16,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": 4,
    "num_experts_per_tok": 2, "output_router_logits": True, "router_aux_loss_coef": 0.1,
}  # fmt: skip


@pytest.mark.slow
def test_a_run_of_experts_under_zero_3_logs_their_load_by_domain_and_exports_the_trained_weights(tmp_path):
    config = tiny_config(
        tmp_path, "train.steps=3", "train.deepspeed={zero_optimization: {stage: 3}}",
        "validation.max_examples_per_domain=2",
    )  # fmt: skip
    config = config.model_copy(update={"model": config.model.model_copy(update={"from_config": QWEN})})

    def trained(world):
        weights = be_trained(config, world).engine.full_weights()
        return {name.removeprefix("causal_lm."): part.numpy() for name, part in weights.items()}

    (tmp_path / "results").mkdir()
    weights, _ = run_ranks(trained, world_size=2, folder=tmp_path / "results")
    # Metrics: the router's loss apart, and the load of the experts by domain.
    lines = [line for line in read_lines(config.run_dir / "metrics.jsonl") if "train/loss" in line]
    for line in lines:
        assert line["train/router_loss"] == pytest.approx(0.2, rel=0.1)  # 0.1 * 2 experts a token where all are equal
        loads = [line.get(f"domain/{name}/expert_load_entropy") for name in DOMAIN_NAMES]
        assert any(load is not None for load in loads)
        assert all(0.3 < load <= 1 for load in loads if load is not None)
        assert all(0.25 <= line.get(f"domain/{name}/expert_load_largest", 0.5) <= 0.5 for name in DOMAIN_NAMES)
    # All counts by layer and expert, for the report.
    counts = ExpertCounts.from_dict(json.loads((config.run_dir / "experts.json").read_text(encoding="utf-8")))
    assert (sorted(counts.domain_names), counts.first_step, counts.last_step) == (sorted(DOMAIN_NAMES), 1, 3)
    served = [lines[-1][f"domain/{name}/num_tokens"] for name in counts.domain_names]
    assert counts.counts_KLX.sum(axis=2).tolist() == [[2 * num_tokens] * 2 for num_tokens in served]  # 2 experts each
    assert all(0 < line.get(f"domain/{name}/expert_lift", 1) <= 6 for line in lines for name in DOMAIN_NAMES)
    assert "Which experts serve which domain" in render_page([read_series(config.run_dir)], now=0.0)
    # The export: the same weights, as transformers loads them.
    exported = AutoModelForCausalLM.from_pretrained(
        export_run(config.run_dir, output=tmp_path / "model"), dtype=torch.float32
    )
    found = dict(exported.named_parameters())
    for name, weight in weights.items():
        if name in found:
            np.testing.assert_array_equal(found[name].detach().numpy(), weight, err_msg=name)
    assert set(found) <= set(weights)


def test_the_tiny_mixture_of_experts_of_the_guide_is_accepted_and_has_a_router_loss():
    lines = (ROOT / "docs/running.md").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith("versatune train") and "num_experts" in line)
    words = [word for word in shlex.split(line)[2:] if "=" in word or word.endswith(".yaml")]
    model = load_config(ROOT / words[0], words[1:]).model
    config = config_from_mapping(model.from_config, vocab_size=512, special_ids={})
    assert (config.num_experts, config.num_experts_per_tok, config.output_router_logits) == (4, 2, True)
