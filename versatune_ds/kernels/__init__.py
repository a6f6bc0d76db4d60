"""Compute the loss by domain: from logits, or fused with the language model's head."""

from __future__ import annotations

from versatune_ds.kernels.domain_loss import DomainLoss, domain_cross_entropy
from versatune_ds.kernels.linear_head import DomainLossHead
from versatune_ds.kernels.settings import IGNORE_INDEX, LossSettings

__all__ = ["IGNORE_INDEX", "DomainLoss", "DomainLossHead", "LossSettings", "domain_cross_entropy"]
