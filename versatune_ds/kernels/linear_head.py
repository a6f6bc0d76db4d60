"""Join the language model's head and the loss by domain in one module that owns the head's weight.

The one idea: owning the very Parameter of the linear layer it replaces keeps embeddings tied and state-dict keys
unchanged, and lets the hooks of ZeRO-3, which gather a module's own parameters around its forward, do their work in
training and in evaluation.

Not covered: adapters (LoRA) on the head itself; a head whose weight is quantised.

Shape legend: **B** rows, **T** tokens per row, **N** = B*T, **M** rows kept by valid_index, **D** hidden,
**V** vocabulary, **K** domains.
"""

from __future__ import annotations

import torch
from torch import nn

from versatune_ds.kernels import ops
from versatune_ds.kernels.domain_loss import DomainLoss, check_ids_shape, loss_weights_or_ones, pack_result
from versatune_ds.kernels.head_loss import HeadLoss, chunk_rows, evaluate_chunks
from versatune_ds.kernels.settings import LossSettings

DEFAULT_CHUNK_MIB = 1024.0
"""Logits in memory at once. Each chunk beyond the first costs a pass over the float32 weight gradient."""


class DomainLossHead(nn.Module):
    """Map hidden states to a loss by domain without holding all logits, or, without labels, to logits.

    Attributes:
        weight: Parameter [V, D].
        bias: Parameter [V] or None.
    """

    def __init__(
        self,
        weight: nn.Parameter,
        bias: nn.Parameter | None = None,
        *,
        settings: LossSettings | None = None,
        chunk_mib: float = DEFAULT_CHUNK_MIB,
    ) -> None:
        """Keep the parameters given.

        Args:
            weight: [V, D]; not copied, so a tied embedding stays tied.
            bias: [V] or None.
            settings: Constants of the loss; the defaults when None.
            chunk_mib: Budget for logits in MiB.

        Raises:
            ValueError: If chunk_mib is not positive.
        """
        super().__init__()
        if chunk_mib <= 0:
            raise ValueError(f"chunk_mib: expected a positive number of MiB, got {chunk_mib}")
        self.weight = weight
        self.register_parameter("bias", bias)
        self.settings = settings or LossSettings()
        self.chunk_mib = chunk_mib

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, *, settings: LossSettings | None = None, chunk_mib: float = DEFAULT_CHUNK_MIB
    ) -> DomainLossHead:
        """Return a head that shares the parameters of a linear layer."""
        return cls(linear.weight, linear.bias, settings=settings, chunk_mib=chunk_mib)

    def forward(
        self,
        hidden: torch.Tensor,
        labels: torch.Tensor | None = None,
        domain_ids: torch.Tensor | None = None,
        *,
        num_domains: int = 1,
        loss_weights_K: torch.Tensor | None = None,
        valid_index: torch.Tensor | None = None,
        num_valid: int | None = None,
        per_token: bool = False,
    ) -> DomainLoss | torch.Tensor:
        """Return the loss by domain, or plain logits (not soft-capped, as `nn.Linear` gives) without labels.

        Args:
            hidden: [N, D] or [B, T, D].
            labels: int64 [N] or [B, T], next-token aligned already; None asks for logits.
            domain_ids: int64, shaped like labels; None means one domain.
            num_domains: K.
            loss_weights_K: float [K] or None for ones.
            valid_index: int64 [M], flat positions to keep; the rest is taken as masked and costs nothing.
            num_valid: How many entries of valid_index are real; entries behind contribute nothing. None means all.
            per_token: Also return the loss of each of the N tokens.

        Raises:
            ValueError: If shapes do not fit together, or (CPU only) an id of a loss-bearing token is out of range.
        """
        if labels is None:
            return nn.functional.linear(hidden, self.weight, self.bias)
        ops.prepare(hidden.device.type)
        hidden_ND = hidden.reshape(-1, hidden.shape[-1])
        labels_N = labels.reshape(-1)
        domain_ids_N = torch.zeros_like(labels_N) if domain_ids is None else domain_ids.reshape(-1)
        self._check(hidden_ND, labels_N, domain_ids_N)
        if valid_index is None:
            kept = hidden_ND, labels_N, domain_ids_N
        else:
            kept = self._keep_valid(hidden_ND, labels_N, domain_ids_N, valid_index, num_valid)
        weights_K = loss_weights_or_ones(loss_weights_K, num_domains=num_domains, device=hidden.device)
        loss, bins_K5, token_losses = self._loss_of_rows(*kept, weights_K)
        if per_token and valid_index is not None:
            # Entries behind num_valid may repeat a kept position: added zeros leave it alone, copied ones would not.
            token_losses = torch.zeros_like(labels_N, dtype=torch.float32).index_add_(0, valid_index, token_losses)
        return pack_result(loss, bins_K5, token_losses, per_token=per_token)

    def _check(self, hidden_ND: torch.Tensor, labels_N: torch.Tensor, domain_ids_N: torch.Tensor) -> None:
        if hidden_ND.shape[1] != self.weight.shape[-1]:
            raise ValueError(
                f"hidden: expected last dimension {self.weight.shape[-1]} as in weight {list(self.weight.shape)}, "
                f"got {hidden_ND.shape[1]}"
            )
        check_ids_shape("labels", labels_N, num_rows=hidden_ND.shape[0])
        check_ids_shape("domain_ids", domain_ids_N, num_rows=hidden_ND.shape[0])

    def _keep_valid(
        self,
        hidden_ND: torch.Tensor,
        labels_N: torch.Tensor,
        domain_ids_N: torch.Tensor,
        valid_index_M: torch.Tensor,
        num_valid: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the rows of valid_index; those at positions >= num_valid are masked and zero.

        Zero, because a padding position's hidden state may be NaN (attention over nothing), and 0 * NaN = NaN would
        reach the weight's gradient.
        """
        num_valid = valid_index_M.shape[0] if num_valid is None else num_valid
        if not 0 <= num_valid <= valid_index_M.shape[0]:
            raise ValueError(f"num_valid: expected 0..{valid_index_M.shape[0]} as valid_index has, got {num_valid}")
        is_real_M = torch.arange(valid_index_M.shape[0], device=valid_index_M.device) < num_valid
        hidden_MD = hidden_ND.index_select(0, valid_index_M)
        if num_valid < valid_index_M.shape[0]:
            hidden_MD = torch.where(is_real_M[:, None], hidden_MD, 0.0)
        labels_M = labels_N.index_select(0, valid_index_M).where(is_real_M, self.settings.ignore_index)
        return hidden_MD, labels_M, domain_ids_N.index_select(0, valid_index_M)

    def _loss_of_rows(
        self,
        hidden_ND: torch.Tensor,
        labels_N: torch.Tensor,
        domain_ids_N: torch.Tensor,
        loss_weights_K: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        dtype = compute_dtype(self.weight)
        weight_VD, bias_V = self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype)
        hidden_ND = hidden_ND.to(dtype)
        chunks = chunk_rows(
            hidden_ND.shape[0],
            vocabulary=weight_VD.shape[0],
            element_bytes=dtype.itemsize,
            chunk_mib=self.chunk_mib,
        )
        arguments = (hidden_ND, weight_VD, bias_V, labels_N, domain_ids_N, loss_weights_K)
        wants_gradient = any(tensor is not None and tensor.requires_grad for tensor in arguments[:3])
        # Autocast would cast what is cast already, and refuses `out=`.
        with torch.autocast(hidden_ND.device.type, enabled=False):
            if wants_gradient and torch.is_grad_enabled():
                return HeadLoss.apply(*arguments, chunks, self.settings.as_arguments())
            return evaluate_chunks(
                *(t if t is None else t.detach() for t in arguments), chunks, self.settings.as_arguments()
            )


def compute_dtype(weight_VD: torch.Tensor) -> torch.dtype:
    """Return the dtype of the products: autocast's where it is on, the weight's otherwise (never an upcast)."""
    device_type = weight_VD.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else weight_VD.dtype
