"""Why DeepSpeed's expert parallelism is refused; once one of these fails, a newer DeepSpeed may be worth supporting."""

import deepspeed
import pytest
import torch
from expert_models import MODELS
from ranks import run_ranks
from tiny_models import build_arguments

from versatune_ds.engine.engine import share_process_group
from versatune_ds.model.build import build_causal_lm


def expert_parallel(model_type, *, stage):
    """Return the names of a model's parameters once its experts are spread over two ranks, or the first error."""
    causal_lm = build_causal_lm(**build_arguments(model_type, **MODELS[model_type]))
    config = {
        "train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage},
        "expert_parallel": {"enabled": True, "autoep_size": 2, "preset_model": model_type, "use_grouped_mm": False},
    }  # fmt: skip
    try:
        optimizer = torch.optim.AdamW(causal_lm.parameters())
        deepspeed.initialize(model=causal_lm, optimizer=optimizer, config=config, dist_init_required=False)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return {name for name, _ in causal_lm.named_parameters()}


@pytest.mark.slow
def test_expert_parallel_fails_on_qwen_and_with_zero_and_renames_the_experts_of_deepseek(tmp_path):
    def tried(world):
        share_process_group()
        cases = (("qwen3_moe", 0), ("mixtral", 0), ("deepseek_v3", 2), ("deepseek_v3", 0))
        return [expert_parallel(name, stage=stage) for name, stage in cases]

    qwen, mixtral, with_zero, names = run_ranks(tried, world_size=2, folder=tmp_path)[0]
    assert qwen.startswith("TypeError: ")
    assert mixtral.startswith("TypeError: ")
    assert "None of the param groups are marked as MoE" in with_zero
    assert "model.layers.1.mlp.experts.w1" in names
    assert "model.layers.1.mlp.experts.gate_up_proj" not in names
