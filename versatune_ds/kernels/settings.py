"""Define the settings of the loss, which every kernel takes."""

from __future__ import annotations

from dataclasses import dataclass

IGNORE_INDEX = -100
"""Label of a position that bears no loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """How the loss of one token is computed from its logits.

    With x the logits after soft-capping, lse = logsumexp(x), y the label and V the vocabulary size:

        nll       = lse - x_y
        objective = (1 - label_smoothing) * nll + label_smoothing / V * sum_v(lse - x_v) + z_loss * lse^2

    The objective is differentiated; nll is reported by domain.
    """

    ignore_index: int = IGNORE_INDEX
    z_loss: float = 0.0
    """Factor of lse^2, which keeps logits from drifting; 1e-4 is usual, 0 is off."""
    softcap: float = 0.0
    """Logits become softcap * tanh(logits / softcap); 0 is off."""
    label_smoothing: float = 0.0
    """Probability mass spread evenly over the vocabulary, in [0, 1)."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: If a value lies outside its range.
        """
        if self.z_loss < 0.0:
            raise ValueError(f"z_loss: expected a number >= 0, got {self.z_loss}")
        if self.softcap < 0.0:
            raise ValueError(f"softcap: expected a number >= 0 (0 is off), got {self.softcap}")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing: expected a number in [0, 1), got {self.label_smoothing}")

    def as_arguments(self) -> tuple[int, float, float, float]:
        """Return the settings in the order in which every operator's schema takes them."""
        return self.ignore_index, self.z_loss, self.softcap, self.label_smoothing
