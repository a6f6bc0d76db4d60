"""Under ZeRO-3 a model's losses are checked through the engine, without an effect on training."""

import pytest
import torch
from one_batch import engine_losses, make_engine, micro_batches
from ranks import run_ranks
from tiny_models import build_arguments

from versatune_ds.config import TrainConfig
from versatune_ds.engine.ds_settings import deepspeed_config
from versatune_ds.engine.engine import Engine, share_process_group
from versatune_ds.model.build import build_causal_lm
from versatune_ds.model.domain_model import DomainModel

REFUSED = {
    "cohere": ({"logit_scale": 0.0625}, "sdpa", "scales its logits outside its head"),
    "opt": ({"num_key_value_heads": None, "intermediate_size": None, "ffn_dim": 48, "word_embed_proj_dim": 32}, "sdpa",
            "lets the examples of a packed row see each other"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_llama_passes_the_check_and_trains_bit_for_bit_as_without_it(stage, tmp_path):
    def losses(world):
        zero = {"stage": stage}
        checked, plain = (make_engine(world, zero=zero) for _ in range(2))
        checked.check_losses()
        held_out = checked.token_losses(micro_batches("packed", world=world, rows_per_micro_batch=1)[0])
        checked.check_losses()
        first = engine_losses(checked, last=2)
        checked.check_losses()
        return held_out.sum().item() > 0, first + engine_losses(checked, first=3), engine_losses(plain)

    for has_losses, found, expected in run_ranks(losses, world_size=2, folder=tmp_path):
        assert has_losses
        assert found == expected


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_zero_3_model_whose_losses_would_be_wrong_is_refused_on_every_rank(model_type, tmp_path):
    keys, attention, message = REFUSED[model_type]

    def refused(world):
        share_process_group()
        train = TrainConfig(steps=1, rows_per_batch=2, precision="fp32", deepspeed={"zero_optimization": {"stage": 3}})
        model = DomainModel(build_causal_lm(**build_arguments(model_type, attention=attention, **keys)), num_domains=1)
        ds_config = deepspeed_config(train, world_size=world.world_size)
        engine = Engine(model, train=train, ds_config=ds_config, world=world, device=torch.device("cpu"), seed=0)
        with pytest.raises(ValueError, match=message):
            engine.check_losses()
        return True

    assert run_ranks(refused, world_size=2, folder=tmp_path) == [True, True]
