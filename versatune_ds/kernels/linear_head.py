"""Join the language model's head and the loss by domain in one module that owns the head's weight.

The module owns the Parameter of the linear layer that it replaces. So embeddings stay tied, state-dict keys do not
change, and the hooks of ZeRO-3, which gather a module's own parameters around its forward, work in training and in
evaluation.

Not covered: adapters (LoRA) on the head itself; a head whose weight is quantised.

Shape legend: **B** rows, **T** tokens per row, **N** = B*T, **M** rows kept by valid_index, **D** hidden,
**V** vocabulary, **K** domains.
"""

from __future__ import annotations

import torch
from torch import nn

from versatune_ds.kernels import ops
from versatune_ds.kernels.domain_loss import DomainLoss, check_ids_shape, loss_weights_or_ones, pack_result
from versatune_ds.kernels.head_loss import HeadLoss, chunk_rows, evaluate_chunks, return_rows, scale_of_terms
from versatune_ds.kernels.kernel_choice import loss_kernel
from versatune_ds.kernels.settings import LossSettings

DEFAULT_CHUNK_MIB = 1024.0
"""MiB of logits in memory at once. Each chunk after the first costs a pass over the float32 weight gradient."""


class DomainLossHead(nn.Module):
    """Map hidden states to a loss by domain without storing all logits, or, without labels, to logits.

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
        """Store the parameters, without copying them.

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
        grad_scale: float | None = None,
    ) -> DomainLoss | torch.Tensor:
        """Return the loss by domain, or plain logits (not soft-capped, as `nn.Linear` gives) without labels.

        Args:
            hidden: [N, D] or [B, T, D].
            labels: int64 [N] or [B, T], already shifted to the next token; None returns logits.
            domain_ids: int64, shaped like labels; None means one domain.
            num_domains: K.
            loss_weights_K: float [K] or None for ones.
            valid_index: int64 [M], flat positions to keep; all others count as masked and cost nothing.
            num_valid: Number of entries of valid_index that are not padding; None means all.
            per_token: Also return the loss of each of the N tokens.
            grad_scale: The gradient of the loss in backward, as far as it is known on the host. In float16, and on a
                GPU in every dtype, it is applied before gradients are summed over tokens: a float16 sum stays in range,
                and backward needs no pass over the weight's gradient. A value that is not exact gives the same result.

        Raises:
            ValueError: If shapes do not fit together, or (CPU only) an id of a loss-bearing token is out of range.
        """
        if labels is None:
            return nn.functional.linear(hidden, self.weight, self.bias)
        # Flatten, fill in defaults and check.
        hidden_ND = hidden.reshape(-1, hidden.shape[-1])
        labels_N = labels.reshape(-1)
        domain_ids_N = torch.zeros_like(labels_N) if domain_ids is None else domain_ids.reshape(-1)
        self._check(hidden_ND, labels_N, domain_ids_N)
        weights_K = loss_weights_or_ones(loss_weights_K, num_domains=num_domains, device=hidden.device)
        num_valid = checked_num_valid(valid_index, num_valid, num_rows=labels_N.shape[0])
        # Keep the positions that bear loss.
        if valid_index is not None:
            labels_N, domain_ids_N = labels_N.index_select(0, valid_index), domain_ids_N.index_select(0, valid_index)
            labels_N[num_valid:] = self.settings.ignore_index
        loss, bins_K5, token_losses = self._loss_of_rows(
            hidden_ND, valid_index, num_valid, labels_N, domain_ids_N, weights_K, grad_scale
        )
        if per_token:
            token_losses = return_rows(token_losses, valid_index, num_valid, num_rows=hidden_ND.shape[0])
        return pack_result(loss, bins_K5, token_losses, per_token=per_token)

    def _check(self, hidden_ND: torch.Tensor, labels_N: torch.Tensor, domain_ids_N: torch.Tensor) -> None:
        if hidden_ND.shape[1] != self.weight.shape[-1]:
            raise ValueError(
                f"hidden: expected last dimension {self.weight.shape[-1]} as in weight {list(self.weight.shape)}, "
                f"got {hidden_ND.shape[1]}"
            )
        check_ids_shape("labels", labels_N, num_rows=hidden_ND.shape[0])
        check_ids_shape("domain_ids", domain_ids_N, num_rows=hidden_ND.shape[0])

    def _loss_of_rows(
        self,
        hidden_ND: torch.Tensor,
        valid_index_M: torch.Tensor | None,
        num_valid: int,
        labels_M: torch.Tensor,
        domain_ids_M: torch.Tensor,
        loss_weights_K: torch.Tensor,
        grad_scale: float | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute products and loss in the compute dtype, with gradients only if an input requires them."""
        ops.prepare(hidden_ND.device.type)
        dtype = compute_dtype(self.weight)
        differentiable = (
            hidden_ND.to(dtype),
            self.weight.to(dtype),
            None if self.bias is None else self.bias.to(dtype),
        )
        vocabulary, num_rows = self.weight.shape[0], labels_M.shape[0]
        device = hidden_ND.device
        arguments = (*self.settings.as_arguments(), loss_kernel(device.type, device.index, dtype, vocabulary))
        chunks = chunk_rows(num_rows, vocabulary=vocabulary, element_bytes=dtype.itemsize, chunk_mib=self.chunk_mib)
        rest = (valid_index_M, num_valid, labels_M, domain_ids_M, loss_weights_K, chunks, arguments)
        wants_gradient = any(tensor is not None and tensor.requires_grad for tensor in differentiable)
        # Everything is cast already, and autocast refuses `out=`.
        with torch.autocast(device.type, enabled=False):
            if wants_gradient and torch.is_grad_enabled():
                scale = scale_of_terms(grad_scale, device_type=device.type, dtype=dtype, num_tokens=num_valid)
                return HeadLoss.apply(*differentiable, *rest, scale)
            with torch.no_grad():
                return evaluate_chunks(*differentiable, *rest)


def checked_num_valid(valid_index_M: torch.Tensor | None, num_valid: int | None, *, num_rows: int) -> int:
    """Return the number of entries of valid_index that are not padding.

    Raises:
        ValueError: If num_valid is given without valid_index or is not within its length.
    """
    if valid_index_M is None:
        if num_valid is not None:
            raise ValueError(f"num_valid: {num_valid} was given without valid_index")
        return num_rows
    if valid_index_M.dim() != 1 or valid_index_M.dtype != torch.int64:
        raise ValueError(
            f"valid_index: expected int64 of shape [M], got {valid_index_M.dtype} {list(valid_index_M.shape)}"
        )
    num_entries = valid_index_M.shape[0]
    if num_valid is not None and not 0 <= num_valid <= num_entries:
        raise ValueError(f"num_valid: expected 0..{num_entries}, the length of valid_index, got {num_valid}")
    return num_entries if num_valid is None else num_valid


def compute_dtype(weight_VD: torch.Tensor) -> torch.dtype:
    """Return the dtype of the products: autocast's if it is on, else the weight's (never an upcast)."""
    device_type = weight_VD.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else weight_VD.dtype
