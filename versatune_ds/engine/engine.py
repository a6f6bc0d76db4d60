"""Run the model through DeepSpeed: optimizer steps over micro-batches, and losses without gradients.

The loss of an optimizer step is the sum of all its token losses, over every rank and micro-step, divided by the number
of loss tokens in that global batch. That number is known from the plan, so it is the same on 1 process and on 8, with
and without accumulation and packing, and nothing is communicated for it.

Shape legend: **K** domains, **B** rows, **T** tokens per row.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch

from versatune_ds.config import TrainConfig
from versatune_ds.data.batch import Batch
from versatune_ds.distributed import World, leave_world
from versatune_ds.engine.deepspeed_quirks import (
    destroy,
    drop_nonfinite_gradients,
    patch_clipping,
    read_norm_once,
    skip_shared_memory_op,
)
from versatune_ds.engine.expert_leaves import mark_expert_layers
from versatune_ds.engine.learning_rate import learning_rate_at
from versatune_ds.engine.optimizer import build_optimizer
from versatune_ds.kernels.domain_loss import DomainSums
from versatune_ds.model.domain_model import DomainModel, model_inputs
from versatune_ds.model.model_check import check_losses_are_the_models
from versatune_ds.model.slice_checks import check_slices_give_the_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """Result of one optimizer step on this rank. It is on the device: reading it waits for the device."""

    loss_sum: torch.Tensor
    """This rank's sum of token losses, float64 scalar."""
    by_domain: DomainSums
    """This rank's sums by domain."""
    num_loss_tokens_global: int
    is_applied: bool
    """Whether the weights were updated: not if the gradient was not finite; the same on every rank."""
    router_loss: torch.Tensor | None = None
    """Mean over this rank's micro-steps; the step adds the mean over all ranks. None without one."""
    expert_counts_KLX: torch.Tensor | None = None
    """This rank's tokens by domain, layer and expert, where they are counted."""


def share_process_group() -> None:
    """Let DeepSpeed use the existing process group; loading a model in parts (zero.Init) needs its size."""
    skip_shared_memory_op()
    deepspeed.init_distributed()


def leave_process_group() -> None:
    """Destroy the process group; a later run in this process makes one of its own.

    DeepSpeed keeps the groups that it made of it. It forgets them only where it destroys the process group itself:
    otherwise a second run would look for groups that are gone.
    """
    if deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()
    else:
        leave_world()


class Engine:
    """Train steps and measure losses through DeepSpeed's engine.

    Args:
        model: The model with its loss head.
        train: The recipe's train section.
        ds_config: What `deepspeed_config` returned.
        world: This process's place.
        device: Where the model runs.
        seed: Seed of dropout; the generator's state is a function of (seed, step, rank), so it is never saved.
    """

    def __init__(
        self,
        model: DomainModel,
        *,
        train: TrainConfig,
        ds_config: dict[str, Any],
        world: World,
        device: torch.device,
        seed: int,
    ) -> None:
        skip_shared_memory_op()
        mark_expert_layers(model)
        optimizer = build_optimizer(model, train=train, ds_config=ds_config, device=device)
        self.deepspeed_engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=ds_config, dist_init_required=False
        )
        patch_clipping(self.deepspeed_engine)
        read_norm_once(self.deepspeed_engine)
        self.train_settings = train
        self.world = world
        self.device = device
        self.seed = seed

    def train_step(
        self, micro_batches: Sequence[Batch], *, step: int, is_refused: Callable[[float, int], bool] | None = None
    ) -> StepResult:
        """Take one optimizer step over this rank's micro-batches of a global batch.

        The algebra, with W ranks, A micro-steps, L_ra the loss sum of rank r's micro-step a, and M loss tokens in
        the global batch: DeepSpeed divides by A in backward and by W when it averages gradients, so each backward
        gets L_ra * A * W / M and the gradient is that of (sum over r, a of L_ra) / M. A router's loss is added as it
        is: divided by A and W it becomes the mean over all micro-steps (router_loss.py). Where ranks share
        rows, L_ra is the sum over the rank's slice, and the same holds (sequence_parallel.py).

        Args:
            micro_batches: This rank's micro-batches.
            step: Optimizer step, from 1.
            is_refused: Called with this rank's loss sum and the number of global loss tokens before the last backward
                pass; True refuses the update, and must be the same on every rank. The call waits for the device.
        """
        # Everything that varies with the step is set from the step.
        self._seed_dropout(step)
        self._set_learning_rate(step)
        self.deepspeed_engine.train()
        num_loss_tokens_global = micro_batches[0].num_loss_tokens_global
        scale = len(micro_batches) * self.world.world_size / max(num_loss_tokens_global, 1)
        module = self.deepspeed_engine.module
        has_router_loss, has_counts = module.router_loss is not None, module.expert_load is not None
        # Forward and backward, one micro-batch at a time.
        sums, router_losses, counts = [], [], []
        for batch in micro_batches:
            inputs = model_inputs(batch, device=self.device, marks_tokens=has_router_loss or has_counts)
            losses = self.deepspeed_engine(**inputs, grad_scale=scale * self._loss_scale() / len(micro_batches))
            sums.append((losses.loss_sum.detach().double(), *losses.by_domain))
            router_losses.append(losses.router_loss.detach())
            counts.append(losses.expert_counts_KLX)
            is_last = len(sums) == len(micro_batches)
            if is_last and is_refused and is_refused(float(sum(part[0] for part in sums)), num_loss_tokens_global):
                scale = math.nan  # DeepSpeed skips a step whose gradient is NaN
            loss = losses.loss_sum * scale
            self.deepspeed_engine.backward(loss + losses.router_loss if has_router_loss else loss)
            is_finite = not is_last or drop_nonfinite_gradients(self.deepspeed_engine)
            self.deepspeed_engine.step()
        # Sums over the micro-batches.
        loss_sum, *by_domain = (torch.stack(parts).sum(0) for parts in zip(*sums, strict=True))
        return StepResult(
            loss_sum=loss_sum,
            by_domain=DomainSums(*by_domain),
            num_loss_tokens_global=num_loss_tokens_global,
            is_applied=is_finite and self.deepspeed_engine.was_step_applied(),
            router_loss=torch.stack(router_losses).mean() if has_router_loss else None,
            expert_counts_KLX=torch.stack(counts).sum(0) if has_counts else None,
        )

    def _loss_scale(self) -> float:
        """Return the factor by which DeepSpeed will multiply the loss under fp16, 1 elsewhere; a number on the host."""
        if self.train_settings.precision != "fp16":
            return 1.0
        return float(getattr(self.deepspeed_engine.optimizer, "loss_scale", 1.0))

    def check_losses(self) -> None:
        """Check that the losses are the model's own, with weights gathered as in training; the same on every rank.

        Communication: ZeRO-3's own.

        Raises:
            ValueError: See model_check.py.
        """
        self.deepspeed_engine.eval()
        check_losses_are_the_models(self.deepspeed_engine.module.causal_lm)

    def check_slices(self) -> None:
        """Check that slices of rows give what the rows give, where ranks share them; the same on every rank.

        Raises:
            ValueError: See slice_checks.py.
        """
        self.deepspeed_engine.eval()
        check_slices_give_the_rows(self.deepspeed_engine.module)

    @torch.no_grad()
    def token_losses(self, batch: Batch) -> torch.Tensor:
        """Return the loss of every position of a micro-batch, [B*T] fp32, zero where there is no label.

        The rows may be of other domains than those trained on: no sum by domain is made of them.
        """
        self.deepspeed_engine.eval()
        inputs = model_inputs(batch, device=self.device)
        inputs["domain_ids"] = torch.zeros_like(inputs["domain_ids"])
        return self.deepspeed_engine(**inputs, per_token=True).token_losses_N

    def full_weights(self, *, only_trained: bool = False) -> dict[str, torch.Tensor]:
        """Return the model's weights by name as tensors on the host, in the precision of training; on rank 0 only.

        The other ranks return an empty mapping, so the host of rank 0 needs room for one copy. A tied weight has one
        name. Communication: under ZeRO-3 one gather a weight, so every rank must call it.

        Args:
            only_trained: Whether frozen weights are left out.
        """
        module, weights = self.deepspeed_engine.module, {}
        for name, parameter in module.named_parameters():
            if only_trained and not parameter.requires_grad:
                continue
            with deepspeed.zero.GatheredParameters([parameter]):  # without effect below stage 3
                if self.world.is_rank_zero:
                    weights[name] = parameter.detach().cpu().clone()
        if self.world.is_rank_zero and not only_trained:
            saved = set(module.state_dict())
            weights |= {name: buffer.cpu().clone() for name, buffer in module.named_buffers() if name in saved}
        return weights

    def grad_norm(self) -> float:
        """Return the gradient norm before clipping of the last optimizer step. Waits for the device."""
        norm = self.deepspeed_engine.get_global_grad_norm()
        return float(norm) if norm is not None else math.nan

    def close(self) -> None:
        """Free the model, its gradients and the optimizer's state; the engine cannot be used afterwards.

        Every rank calls it at the same point.
        """
        engine = self.deepspeed_engine
        del self.deepspeed_engine
        destroy(engine)
        del engine
        gc.collect()  # the engine refers to itself
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _seed_dropout(self, step: int) -> None:
        """Set the generators from (seed, step, rank)."""
        torch.manual_seed(((self.seed * 1_000_003 + step) * 65_537 + self.world.rank) % 2**63)

    def _set_learning_rate(self, step: int) -> None:
        """Set the learning rate of a step on every parameter group."""
        for group in self.deepspeed_engine.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, self.train_settings)
