"""Join a causal language model and the loss head: packed rows in, losses by domain out.

The model keeps its class and its parameter names; only its output embeddings become a `DomainLossHead` with the same
weight. So checkpoints, tied embeddings, LoRA and export need no conversion.

Shape legend: **K** domains, **B** rows, **T** tokens per row, **N** positions of the micro-batch (B*T).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from versatune_ds.data.batch import IGNORE_INDEX, Batch
from versatune_ds.kernels.domain_loss import DomainSums
from versatune_ds.kernels.linear_head import DomainLossHead
from versatune_ds.kernels.settings import LossSettings
from versatune_ds.model.attention import attention_arguments
from versatune_ds.model.expert_load import expert_load_of
from versatune_ds.model.router_loss import router_loss_of
from versatune_ds.model.sizes import num_learned_positions, sizes_of


class DomainLosses(NamedTuple):
    """The losses of one forward pass: tensors in a plain tuple, which ZeRO-3's hooks can walk through."""

    loss_sum: torch.Tensor
    """Sum of the weighted token losses, fp32 scalar with gradient."""
    loss_sum_K: torch.Tensor
    """Unweighted loss sums by domain, float64."""
    loss_sq_sum_K: torch.Tensor
    """Sums of squared token losses by domain, float64."""
    num_loss_tokens_K: torch.Tensor
    """Loss tokens by domain, int64."""
    token_losses_N: torch.Tensor
    """Loss of every position, zero where the label is ignored; empty unless `per_token`."""
    router_loss: torch.Tensor
    """Load-balancing loss times its coefficient, a scalar with gradient; 0 in evaluation, and where there is none."""
    expert_counts_KLX: torch.Tensor | None = None
    """Tokens that each expert got, by domain and layer, where they are counted (expert_load.py)."""

    @property
    def by_domain(self) -> DomainSums:
        """Return the three sums by domain as one value."""
        return DomainSums(self.loss_sum_K, self.loss_sq_sum_K, self.num_loss_tokens_K)


class DomainModel(nn.Module):
    """Run a causal language model on packed rows and return its loss by domain.

    Args:
        causal_lm: A transformers model; its head is replaced in place.
        num_domains: K.
        sequence_group: Process group of the ranks that share this rank's rows (`sequence_parallel.py`); None for none.
    """

    def __init__(self, causal_lm: PreTrainedModel, *, num_domains: int, sequence_group: Any = None) -> None:
        super().__init__()
        self.sequence_group = sequence_group
        self.causal_lm = causal_lm
        self.num_domains = num_domains
        linear = causal_lm.get_output_embeddings()
        head_name = next(name for name, module in causal_lm.named_modules() if module is linear)
        parent, _, attribute = head_name.rpartition(".")
        settings = LossSettings(softcap=softcap_of(causal_lm))
        setattr(causal_lm.get_submodule(parent), attribute, DomainLossHead.from_linear(linear, settings=settings))
        self.num_positions = num_learned_positions(causal_lm)
        self.router_loss = router_loss_of(causal_lm)
        self.expert_load = expert_load_of(causal_lm, num_domains=num_domains)

    def forward(
        self,
        *,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        positions: torch.Tensor,
        domain_ids: torch.Tensor,
        valid_index: torch.Tensor | None = None,
        num_valid: int | None = None,
        cu_seqlens: torch.Tensor | None = None,
        longest_segment: int | None = None,
        per_token: bool = False,
        is_token: torch.Tensor | None = None,
        grad_scale: float | None = None,
        row_positions: torch.Tensor | None = None,
    ) -> DomainLosses:
        """Return the losses of a micro-batch of packed rows, all [B, T] int64; for the others see `Batch`.

        `grad_scale` is the factor of the later backward pass, where it is known; see `DomainLossHead.forward`.

        Attention never crosses examples. Positions restart with every example, and from that transformers makes its
        packed mask (sdpa, eager, flex_attention), which a cache or a mask of ours would switch off; the others get the
        bounds of the examples (`attention.py`), found in the positions only where `cu_seqlens` is not given.
        """
        has_router_loss = self.router_loss is not None and self.training
        extra = {"output_router_logits": True} if has_router_loss else {}
        bounds = {"cu_seqlens": cu_seqlens, "longest_segment": longest_segment}
        counting = nullcontext()
        if self.expert_load is not None and self.training and is_token is not None:
            counting = self.expert_load.counting(domain_ids, is_token_BT=is_token)
        with counting as expert_counts:
            output = self.run_decoder(input_ids, positions, row_positions, **bounds, **extra)
        hidden = output[0]
        result = self.causal_lm.get_output_embeddings()(
            hidden,
            labels,
            domain_ids,
            num_domains=self.num_domains,
            valid_index=valid_index,
            num_valid=num_valid,
            per_token=per_token,
            grad_scale=grad_scale,
        )
        token_losses = result.token_losses_N if per_token else hidden.new_zeros(0)
        router_loss = self.router_loss(output.router_logits, is_token) if has_router_loss else hidden.new_zeros(())
        return DomainLosses(result.loss, *result.by_domain, token_losses, router_loss, expert_counts)

    def run_decoder(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        row_positions: torch.Tensor | None = None,
        *,
        cu_seqlens: torch.Tensor | None = None,
        longest_segment: int | None = None,
        **extra: bool,
    ) -> Any:
        """Return the decoder's output, hidden states first; for the arguments see `forward`.

        Raises:
            RuntimeError: If these are slices of rows, and no ranks share rows.
        """
        is_sliced = row_positions is not None
        if is_sliced and self.sequence_group is None:
            raise RuntimeError("slices of rows for a model that takes complete ones; train.sequence_parallel must be 1")
        lengths = attention_arguments(
            self.causal_lm,
            row_positions if is_sliced else positions,
            cu_seqlens=cu_seqlens,
            longest_segment=longest_segment,
            group=self.sequence_group if is_sliced else None,
        )
        if self.num_positions is not None:  # examples fit (check_positions); the padding of a long row may not
            positions = positions.remainder(self.num_positions)
        decoder, extra = self.causal_lm.get_decoder(), {**lengths, **extra}
        return decoder(input_ids=input_ids, position_ids=positions, attention_mask=None, use_cache=False, **extra)


def compile_layers(causal_lm: nn.Module) -> None:
    """Compile the decoder's layers in place, one by one, so that they share one compiled form and names do not change.

    The head is excluded: its kernel is compiled already.
    """
    for module in causal_lm.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile()


def model_inputs(batch: Batch, *, device: torch.device, marks_tokens: bool = False) -> dict[str, Any]:
    """Return a micro-batch as the arguments of `DomainModel.forward`, on a device.

    Args:
        batch: Rows on the CPU.
        device: Where the model runs.
        marks_tokens: Whether to add `is_token`, which only mixtures of experts need.
    """
    tensors = {
        "input_ids": batch.input_ids,
        "labels": batch.labels,
        "positions": batch.positions,
        "domain_ids": batch.domain_ids,
        "valid_index": batch.valid_index,
        "cu_seqlens": batch.cu_seqlens,
    }
    if batch.row_positions is not None:
        tensors["row_positions"] = batch.row_positions
    if marks_tokens:
        tensors["is_token"] = _is_token(batch)
    on_device = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
    return {**on_device, "num_valid": batch.num_valid, "longest_segment": batch.longest_segment}


def _is_token(batch: Batch) -> torch.Tensor:
    """Return which positions are not padding, bool [B, T]; padding is a last segment of a row without loss."""
    is_last = batch.segment_ids == batch.segment_ids[:, -1:]
    bears_loss = ((batch.labels != IGNORE_INDEX) & is_last).any(dim=1, keepdim=True)
    return ~is_last | bears_loss


def softcap_of(causal_lm: PreTrainedModel) -> float:
    """Return the bound of a model's logits, as in softcap * tanh(logits / softcap); 0 for none."""
    return sizes_of(causal_lm.config).softcap
