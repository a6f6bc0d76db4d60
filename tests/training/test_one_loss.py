"""One definition of the loss: the same numbers on any number of processes, however rows are packed and accumulated.

Every run here is compared with transformers' logits, torch's cross entropy and one example at a time on one process.
"""

from importlib.util import find_spec

import pytest
import torch
from one_batch import LEARNING_RATE, STEPS, build, engine_losses, examples, make_engine
from ranks import run_ranks

from versatune_ds.config import LoraConfig
from versatune_ds.engine.checkpoint import NewCheckpoint, load_checkpoint, save_checkpoint

MODELS = {
    "whole": {},
    "checkpointed": {"gradient_checkpointing": True},
    "frozen_head": {"freeze": ("lm_head.weight", "model.embed_tokens.weight")},
    "lora": {"lora": LoraConfig(rank=4)},
    "dora": {"lora": LoraConfig(rank=4, use_dora=True), "gradient_checkpointing": True},
}


def in_4_bits(folder):
    """Save the small model, and return the settings that load it in 4 bits with adapters and checkpointing."""
    build().save_pretrained(folder)
    saved = {"name_or_path": str(folder), "from_config": None, "load_in_4bit": True}
    return {**saved, "lora": LoraConfig(rank=4), "gradient_checkpointing": True}


def plain_losses(settings):
    """Return the losses of training with transformers and torch alone."""
    causal_lm = build(**settings)
    trained = [parameter for parameter in causal_lm.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    losses = []
    for _ in range(STEPS):
        loss = sum(
            torch.nn.functional.cross_entropy(
                causal_lm(torch.tensor([tokens])).logits[0, :-1], torch.tensor(tokens[1:]), reduction="sum"
            )
            for tokens in examples()
        ) / sum(len(tokens) - 1 for tokens in examples())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_packing_and_accumulation_do_not_change_the_loss(world_size, tmp_path):
    """To 1e-5 in fp32, over optimizer steps that amplify what differs."""
    ways = [("packed", 1), ("one by one", 1), ("one by one", 2), *([("packed", 4)] if world_size == 1 else [])]

    def losses_of_all_ways(world):
        return [
            engine_losses(
                make_engine(world, layout=layout, rows_per_micro_batch=rows, zero={"stage": 2}),
                layout=layout,
                rows_per_micro_batch=rows,
            )
            for layout, rows in ways
        ]

    expected = plain_losses({})
    assert expected[-1] < expected[0] - 0.05
    for losses in run_ranks(losses_of_all_ways, world_size=world_size, folder=tmp_path)[0]:
        assert losses == pytest.approx(expected, abs=1e-5)


def check_losses_and_resume(models, *, stage, tmp_path):
    """Compare each model's losses on two processes with plain training, and those after a resume with the run's own."""

    def losses_and_resumed(world):
        return {name: losses_around_a_checkpoint(world, tmp_path / name, settings) for name, settings in models.items()}

    def losses_around_a_checkpoint(world, run_dir, settings):
        engine, again = (make_engine(world, zero={"stage": stage}, settings=settings) for _ in range(2))
        losses = engine_losses(engine, last=1)
        only_trained = "load_in_4bit" in settings
        new = NewCheckpoint(run_dir=run_dir, step=1, state={}, keep=1, world=world, only_trained=only_trained)
        folder = save_checkpoint(engine.deepspeed_engine, new)
        rest = engine_losses(engine, first=2)
        load_checkpoint(again.deepspeed_engine, folder, only_trained=only_trained)
        return losses + rest, rest == engine_losses(again, first=2)

    (tmp_path / "ranks").mkdir()
    found = run_ranks(losses_and_resumed, world_size=2, folder=tmp_path / "ranks")[0]
    for name, (losses, is_same) in found.items():
        assert losses == pytest.approx(plain_losses(models[name]), abs=1e-5), name
        assert is_same, f"{name}: a resumed run differs"


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_choice_of_trained_parameters_has_the_loss_of_plain_training_and_resumes_exactly(stage, tmp_path):
    """The whole model, a frozen tied head, LoRA, DoRA (refused under ZeRO-3), with checkpointing."""
    models = {name: settings for name, settings in MODELS.items() if (stage, name) != (3, "dora")}
    check_losses_and_resume(models, stage=stage, tmp_path=tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install -e '.[qlora]'")
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_weights_in_4_bits_have_the_loss_of_plain_training_and_resume_exactly(stage, tmp_path):
    """With adapters and checkpointing; ZeRO-3 refuses weights in 4 bits."""
    check_losses_and_resume({"4 bits": in_4_bits(tmp_path / "base")}, stage=stage, tmp_path=tmp_path)
