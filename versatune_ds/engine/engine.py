"""Run the model through DeepSpeed: optimizer steps over micro-batches, and losses without gradients.

The one idea: the loss of an optimizer step is the sum of all its token losses, over every rank and micro-step,
divided by the number of loss tokens in that global batch. That number is known from the plan, so it is the same on 1
process and on 8, with and without accumulation and packing, and nothing is communicated for it.

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
from deepspeed.runtime.zero import parameter_offload, partitioned_param_coordinator

from versatune_ds.config import TrainConfig
from versatune_ds.data.batch import Batch
from versatune_ds.distributed import World
from versatune_ds.engine.learning_rate import learning_rate_at
from versatune_ds.engine.optimizer import build_optimizer
from versatune_ds.kernels.domain_loss import DomainSums
from versatune_ds.model.build import DomainModel, model_inputs
from versatune_ds.model.model_check import check_losses_are_the_models

# deepspeed 0.19.8 builds a shared-memory op at the first CPU collective (30 s, needs ninja); gloo serves as well.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """Hold what one optimizer step leaves on this rank, on the device: reading it waits for the device."""

    loss_sum: torch.Tensor
    """This rank's sum of token losses, float64 scalar."""
    by_domain: DomainSums
    """This rank's sums by domain."""
    num_loss_tokens_global: int
    is_applied: bool
    """Whether the weights were updated; not where the gradient was not finite, the same on every rank."""


def share_process_group() -> None:
    """Let DeepSpeed use the process group that is there; loading a model in parts (zero.Init) asks it for its size."""
    deepspeed.init_distributed()


class Engine:
    """Own the DeepSpeed engine and the two things done with it: train a step, measure losses.

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
        optimizer = build_optimizer(model, train=train, ds_config=ds_config, device=device)
        self.deepspeed_engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=ds_config, dist_init_required=False
        )
        self.deepspeed_engine.clip_fp32_gradients = self._clip_gradients
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
        is: divided by A and W it becomes the mean over all micro-steps (router_loss.py).

        Args:
            micro_batches: This rank's.
            step: Optimizer step, from 1.
            is_refused: Asked, with this rank's loss sum and the global loss tokens, before the last backward pass; True
                refuses the update, and must be so on every rank. To ask waits for the device.
        """
        self._seed_dropout(step)
        self._set_learning_rate(step)
        self.deepspeed_engine.train()
        num_loss_tokens_global = micro_batches[0].num_loss_tokens_global
        scale = len(micro_batches) * self.world.world_size / max(num_loss_tokens_global, 1)
        has_router_loss = self.deepspeed_engine.module.router_loss is not None
        sums = []
        for batch in micro_batches:
            inputs = model_inputs(batch, device=self.device, marks_tokens=has_router_loss)
            losses = self.deepspeed_engine(**inputs, grad_scale=scale * self._loss_scale() / len(micro_batches))
            sums.append((losses.loss_sum.detach().double(), *losses.by_domain))
            is_last = len(sums) == len(micro_batches)
            if is_last and is_refused and is_refused(float(sum(part[0] for part in sums)), num_loss_tokens_global):
                scale = math.nan  # DeepSpeed takes no step with a gradient that is no number
            loss = losses.loss_sum * scale
            self.deepspeed_engine.backward(loss + losses.router_loss if has_router_loss else loss)
            is_sound = not is_last or self._drop_unsound_gradients()
            self.deepspeed_engine.step()
        loss_sum, *by_domain = (torch.stack(parts).sum(0) for parts in zip(*sums, strict=True))
        return StepResult(
            loss_sum=loss_sum,
            by_domain=DomainSums(*by_domain),
            num_loss_tokens_global=num_loss_tokens_global,
            is_applied=is_sound and self.deepspeed_engine.was_step_applied(),
        )

    def _loss_scale(self) -> float:
        """Return what DeepSpeed will multiply the loss by under fp16, 1 elsewhere; a number on the host."""
        if self.train_settings.precision != "fp16":
            return 1.0
        return float(getattr(self.deepspeed_engine.optimizer, "loss_scale", 1.0))

    def _drop_unsound_gradients(self) -> bool:
        """Return whether gradients are finite, and drop them otherwise; asked under ZeRO stage 0 in fp32 only.

        There the optimizer is torch's own and takes what it is given; one without gradients does nothing. The gradients
        are summed over the ranks by now, so all say the same. This waits for the device; in every other case DeepSpeed
        looks, and waits, by itself.
        """
        if hasattr(self.deepspeed_engine.optimizer, "overflow"):
            return True
        trained = [part for part in self.deepspeed_engine.module.parameters() if part.grad is not None]
        if bool(torch.isfinite(torch.nn.utils.get_total_norm([part.grad for part in trained]))):
            return True
        for part in trained:
            part.grad = None
        return False

    def _clip_gradients(self) -> None:
        """Clip under stage 0 in fp32; deepspeed 0.19.8's own raises IndexError where no parameter has a gradient."""
        if any(part.grad is not None for part in self.deepspeed_engine.module.parameters()):
            type(self.deepspeed_engine).clip_fp32_gradients(self.deepspeed_engine)

    def check_losses(self) -> None:
        """Check that the losses are the model's, weights gathered as they are in training; the same on every rank.

        Communication: ZeRO-3's own.

        Raises:
            ValueError: See model_check.py.
        """
        self.deepspeed_engine.eval()
        check_losses_are_the_models(self.deepspeed_engine.module.causal_lm)

    @torch.no_grad()
    def token_losses(self, batch: Batch) -> torch.Tensor:
        """Return the loss of every position of a micro-batch, [B*T] fp32, zero where none is asked for."""
        self.deepspeed_engine.eval()
        return self.deepspeed_engine(**model_inputs(batch, device=self.device), per_token=True).token_losses_N

    def grad_norm(self) -> float:
        """Return the gradient norm before clipping of the last optimizer step. Waits for the device."""
        norm = self.deepspeed_engine.get_global_grad_norm()
        return float(norm) if norm is not None else math.nan

    def close(self) -> None:
        """Free the model, its gradients and the optimizer's state; the engine cannot be used afterwards.

        Every rank calls it at the same point. Without it, deepspeed 0.19.8 keeps the engines of ZeRO stages 1 to 3
        until the process ends, 16 bytes a parameter: the hooks on the parameters' gradients, which only `destroy`
        removes, refer to the optimizer from where Python's garbage collector does not look.
        """
        engine = self.deepspeed_engine
        del self.deepspeed_engine
        engine.destroy()
        _forget_zero3_modules(engine.module)
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


def _forget_zero3_modules(model: torch.nn.Module) -> None:
    """Remove a model from where deepspeed 0.19.8 keeps it after `destroy` under ZeRO stage 3.

    The model is left at the bottom of a stack of modules in their forward pass, and in the cache of a method of all
    engines; both would keep its parameters' partitions, 2 or 4 bytes a parameter.
    """
    modules = {id(module) for module in model.modules()}
    stack = getattr(parameter_offload, "FWD_MODULE_STACK", [])
    stack[:] = [module for module in stack if id(module) not in modules]
    for method in vars(partitioned_param_coordinator.PartitionedParameterCoordinator).values():
        for cell in getattr(method, "__closure__", None) or ():
            if hasattr(cell.cell_contents, "cache_clear"):
                cell.cell_contents.cache_clear()
