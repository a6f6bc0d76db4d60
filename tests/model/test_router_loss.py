"""A mixture of experts trains with its router loss, as in transformers; reported losses exclude it."""

import deepspeed
import numpy as np
import pytest
import torch
from chat_data import tiny_tokenizer
from one_batch import micro_batch
from ranks import run_ranks
from tiny_models import A, B, C, build_arguments, make_model, pack

from versatune_ds.config import LoraConfig, ModelConfig, TrainConfig
from versatune_ds.engine.ds_settings import deepspeed_config
from versatune_ds.engine.engine import Engine, share_process_group
from versatune_ds.engine.sharded_model import load_model
from versatune_ds.evaluation.questions import Question, answer_greedily
from versatune_ds.model.build import build_causal_lm
from versatune_ds.model.domain_model import DomainModel, model_inputs
from versatune_ds.model.model_check import check_losses_are_the_models
from versatune_ds.model.router_loss import router_loss_of

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
MODELS = {
    "mixtral": EXPERTS,
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                  "shared_expert_intermediate_size": 16},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {**EXPERTS, "head_dim": 8},
}  # fmt: skip
WITH_ROUTER_LOSS = {"output_router_logits": True, "router_aux_loss_coef": 0.5}
ROWS = [[A], [B, C], [C, A], [A, B]]


def build(model_type="mixtral", *, checkpointing=False, lora=None, **keys):
    attention = "eager" if model_type == "gpt_oss" else "sdpa"
    arguments = build_arguments(model_type, attention=attention, **{**MODELS[model_type], **WITH_ROUTER_LOSS, **keys})
    model = arguments["model"].model_copy(update={"gradient_checkpointing": checkpointing, "lora": lora})
    return build_causal_lm(**{**arguments, "model": model})


def gradients(loss, model):
    trained = [(name, part) for name, part in model.named_parameters() if part.requires_grad]
    found = torch.autograd.grad(loss, [part for _, part in trained], allow_unused=True)
    return {name: grad for (name, _), grad in zip(trained, found, strict=True) if grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("model_type", MODELS)
def test_loss_and_gradients_equal_those_of_transformers(model_type, checkpointing):
    """One example without padding; transformers' loss is the mean over its 5 targets."""
    ids = torch.tensor([A])
    own = build(model_type).train()
    expected = own(input_ids=ids, labels=ids)
    causal_lm = build(model_type, checkpointing=checkpointing)
    model = DomainModel(causal_lm, num_domains=1).train()
    found = model(**pack([A], row_tokens=len(A)))
    torch.testing.assert_close(found.router_loss, 0.5 * expected.aux_loss)
    torch.testing.assert_close(found.loss_sum / 5 + found.router_loss, expected.loss)
    theirs = gradients(expected.loss, own)
    ours = gradients(found.loss_sum / 5 + found.router_loss, causal_lm)
    assert any("gate" in name or "router" in name for name in ours)
    for name, grad in ours.items():
        torch.testing.assert_close(grad, theirs[name], atol=1e-6, rtol=1e-4)


def test_measured_and_reported_losses_exclude_the_router_loss():
    model = DomainModel(build(), num_domains=1)
    plain = DomainModel(build(output_router_logits=False), num_domains=1)
    assert plain.router_loss is None
    for is_training in (True, False):
        losses, others = model.train(is_training)(**pack([A, B])), plain.train(is_training)(**pack([A, B]))
        assert torch.equal(losses.loss_sum_K, others.loss_sum_K)
        assert torch.equal(losses.loss_sum, others.loss_sum)
        assert others.router_loss.item() == 0.0
        assert (losses.router_loss.item() > 0.9) == is_training


def test_padding_is_excluded_and_a_batch_of_only_padding_has_router_loss_zero():
    model = DomainModel(build(), num_domains=1).train()
    device = torch.device("cpu")

    def router_loss(examples, row_tokens):
        row = pack(examples, row_tokens=row_tokens)
        batch = micro_batch([row], num_loss_tokens_global=1)
        positions = row["positions"]
        batch.segment_ids.copy_((positions == 0).cumsum(dim=1) - 1)
        return model(**model_inputs(batch, device=device, marks_tokens=True)).router_loss

    torch.testing.assert_close(router_loss([A, B], 24), router_loss([A, B], len(A) + len(B)))
    empty = router_loss([], 24)
    assert empty.item() == 0.0
    assert all(torch.isfinite(grad).all() for grad in gradients(empty, model).values())


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"])
def test_the_check_of_a_models_losses_includes_its_router_loss(model_type, monkeypatch):
    check_losses_are_the_models(build(model_type))
    monkeypatch.setattr(
        "versatune_ds.model.router_loss.RouterLoss.__call__", lambda self, logits, mask=None: logits[0].mean()
    )
    with pytest.raises(ValueError, match=r"^model: this model computes its router loss in another way"):
        check_losses_are_the_models(build(model_type))


def test_without_experts_or_a_coefficient_there_is_none():
    assert router_loss_of(make_model("llama").causal_lm) is None
    assert router_loss_of(build(router_aux_loss_coef=0.0)) is None
    assert router_loss_of(build(output_router_logits=False)) is None


def expected_weights():
    """Return the weights after one plain step on ROWS: token losses over all, and the mean of the routers' losses."""
    causal_lm = build().train()
    model = DomainModel(causal_lm, num_domains=1).train()
    losses = [model(**pack(row)) for row in ROWS]
    num_loss_tokens = sum(int(part.num_loss_tokens_K.sum()) for part in losses)
    router_loss = sum(part.router_loss for part in losses) / len(ROWS)
    loss = sum(part.loss_sum for part in losses) / num_loss_tokens + router_loss
    optimizer = torch.optim.AdamW(causal_lm.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(causal_lm.parameters(), 1.0)
    optimizer.step()
    return {name: part.detach() for name, part in causal_lm.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_step_uses_the_mean_router_loss_over_ranks_and_micro_steps(stage, world_size, tmp_path):
    def weights(world):
        share_process_group()
        train = TrainConfig(
            steps=3, rows_per_batch=4, precision="fp32", learning_rate=0.01, learning_rate_schedule="constant",
            warmup_fraction=0.0, deepspeed={"zero_optimization": {"stage": stage}},
        )  # fmt: skip
        model = DomainModel(build(), num_domains=1)
        ds_config = deepspeed_config(train, world_size=world.world_size)
        engine = Engine(model, train=train, ds_config=ds_config, world=world, device=torch.device("cpu"), seed=0)
        rows = [pack(row) for row in ROWS]
        total = sum(int((row["labels"] != -100).sum()) for row in rows)
        batches = [micro_batch([row], num_loss_tokens_global=total) for row in rows[world.rank :: world.world_size]]
        engine.train_step(batches, step=1)
        with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
            return {name: part.detach().clone().numpy() for name, part in model.causal_lm.named_parameters()}

    expected = expected_weights()
    found = run_ranks(weights, world_size=world_size, folder=tmp_path)[0]
    for name, weight in expected.items():
        torch.testing.assert_close(torch.from_numpy(found[name]), weight, atol=2e-5, rtol=1e-4)


def test_the_router_loss_also_trains_adapters_of_a_frozen_model():
    model = DomainModel(build(lora=LoraConfig(rank=2, target_modules=("q_proj",))), num_domains=1).train()
    assert gradients(model(**pack([A])).router_loss, model)


@pytest.mark.parametrize("model_type", MODELS)
def test_a_model_with_a_router_loss_writes_what_it_writes_without(model_type):
    questions = [Question(domain_id=0, prompt_ids=np.array(ids), answer_ids=np.full(4, 9)) for ids in (A, B)]

    def written(causal_lm):
        return answer_greedily(causal_lm.eval(), questions, tokenizer=tiny_tokenizer())

    causal_lm = build(model_type)
    assert written(causal_lm) == written(build(model_type, output_router_logits=False))
    assert causal_lm.config.output_router_logits is True  # training continues with it


def test_a_model_with_a_router_loss_is_loaded_without_it_where_it_is_not_trained(tmp_path):
    build().save_pretrained(tmp_path)
    vocab_size = build_arguments("mixtral")["vocab_size"]
    train = TrainConfig(steps=1, rows_per_batch=1, precision="fp32")
    loaded = load_model(
        ModelConfig(name_or_path=str(tmp_path)), train=train, vocab_size=vocab_size,
        device=torch.device("cpu"), is_sharded=False, wrap=lambda causal_lm: causal_lm,
    )  # fmt: skip
    assert loaded.generate(torch.tensor([A]), max_new_tokens=3, do_sample=False).shape[1] == len(A) + 3
