"""Loss sums: by domain for training batches, by example for held-out rows.

Only sums are passed on, since they add over ranks. A mean is made once, at the end, and a domain without tokens has no
mean (NaN), never 0.

Shape legend: **K** domains, **E** validation examples.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


def _frozen(values: npt.ArrayLike, dtype: npt.DTypeLike) -> np.ndarray:
    """Return a read-only copy as a vector of one type."""
    array = np.array(values, dtype=dtype)
    array.setflags(write=False)
    return array


def _freeze_fields(statistics: object, dtypes: dict[str, type], *, what: str) -> None:
    """Replace three fields by read-only vectors of their types; raise ValueError if they differ in shape."""
    for name, dtype in dtypes.items():
        object.__setattr__(statistics, name, _frozen(getattr(statistics, name), dtype))
    shapes = {getattr(statistics, name).shape for name in dtypes}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        raise ValueError(f"{what} need three vectors of one length, got shapes {sorted(shapes)}")


def _mean(loss_sum: np.ndarray, num_loss_tokens: np.ndarray) -> np.ndarray:
    """Return sum / tokens in nats per loss token, NaN where there is no token."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(num_loss_tokens > 0, loss_sum / num_loss_tokens, np.nan)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DomainStatistics:
    """Loss sums by domain."""

    loss_sum_K: np.ndarray
    """float64, nats."""
    loss_sq_sum_K: np.ndarray
    """float64, sum of squared token losses."""
    num_loss_tokens_K: np.ndarray
    """int64, tokens that bear loss."""

    def __post_init__(self) -> None:
        """Copy to read-only vectors of the documented types.

        Raises:
            ValueError: If the three differ in shape.
        """
        dtypes = {"loss_sum_K": np.float64, "loss_sq_sum_K": np.float64, "num_loss_tokens_K": np.int64}
        _freeze_fields(self, dtypes, what="statistics by domain")

    def mean(self) -> np.ndarray:
        """Return the mean loss [K] in nats per loss token; NaN for a domain without tokens."""
        return _mean(self.loss_sum_K, self.num_loss_tokens_K)

    def standard_error(self) -> np.ndarray:
        """Return the standard error of the mean [K] as if tokens were independent; NaN for a domain without tokens.

        Approximate: tokens of one example resemble each other, so the true error is larger. Validation uses
        `ExampleLosses.standard_error`, which clusters by example.
        """
        mean_K = self.mean()
        variance_K = np.maximum(_mean(self.loss_sq_sum_K, self.num_loss_tokens_K) - mean_K**2, 0.0)
        return np.sqrt(_mean(variance_K, self.num_loss_tokens_K))

    @classmethod
    def from_vector(cls, vector: npt.ArrayLike) -> DomainStatistics:
        """Return the statistics of a vector [3K], the three sums after one another; counts are exact below 2**53."""
        loss_sum_K, loss_sq_sum_K, num_loss_tokens_K = np.split(np.asarray(vector, dtype=np.float64), 3)
        return cls(loss_sum_K=loss_sum_K, loss_sq_sum_K=loss_sq_sum_K, num_loss_tokens_K=num_loss_tokens_K)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExampleLosses:
    """Loss sums of the same validation examples at one moment.

    A rank fills in the examples it evaluated and leaves zeros elsewhere; the sum over ranks is the measurement.
    """

    loss_sum_E: np.ndarray
    """float64, nats summed over an example's loss tokens."""
    num_loss_tokens_E: np.ndarray
    """int64."""
    domain_ids_E: np.ndarray
    """int64, the domain of each example; the same on every rank."""
    num_domains: int
    """K; a domain may own no example."""
    _num_loss_tokens_K: np.ndarray = field(init=False)
    _mean_K: np.ndarray = field(init=False)
    _num_bearing_K: np.ndarray = field(init=False)
    _residuals_E: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        """Copy to read-only vectors of the documented types, and compute once what is read many times.

        Raises:
            ValueError: If the three differ in shape or an id is out of range.
        """
        dtypes = {"loss_sum_E": np.float64, "num_loss_tokens_E": np.int64, "domain_ids_E": np.int64}
        _freeze_fields(self, dtypes, what="losses by example")
        if np.any((self.domain_ids_E < 0) | (self.domain_ids_E >= self.num_domains)):
            raise ValueError(f"domain ids of examples must lie in 0..{self.num_domains - 1}")
        num_loss_tokens_K = self.sum_by_domain(self.num_loss_tokens_E)
        mean_K = _mean(self.sum_by_domain(self.loss_sum_E), num_loss_tokens_K)
        for name, values, dtype in (
            ("_num_loss_tokens_K", num_loss_tokens_K, np.int64),
            ("_mean_K", mean_K, np.float64),
            ("_num_bearing_K", self.sum_by_domain(self.num_loss_tokens_E > 0), np.float64),
            ("_residuals_E", self.loss_sum_E - mean_K[self.domain_ids_E] * self.num_loss_tokens_E, np.float64),
        ):
            object.__setattr__(self, name, _frozen(values, dtype))

    def select(self, examples: np.ndarray) -> ExampleLosses:
        """Return the losses of some examples, given by their numbers."""
        return ExampleLosses(
            loss_sum_E=self.loss_sum_E[examples],
            num_loss_tokens_E=self.num_loss_tokens_E[examples],
            domain_ids_E=self.domain_ids_E[examples],
            num_domains=self.num_domains,
        )

    def num_examples(self) -> np.ndarray:
        """Return the examples of each domain, int64 [K]."""
        return np.bincount(self.domain_ids_E, minlength=self.num_domains)

    def num_examples_for(self, standard_error: float, *, min_examples: int) -> np.ndarray:
        """Return how many of its examples each domain needs for a standard error of its mean, int64 [K].

        The error falls as 1 / sqrt(examples). A domain whose error is not known keeps all it has, and so does one that
        would need more.

        Example: 100 examples with an error of 0.02 nats. For 0.04 nats 100 * (0.02 / 0.04)^2 = 25 are enough.
        """
        num_examples_K = self.num_examples()
        needed_K = np.ceil(num_examples_K * (self.standard_error() / standard_error) ** 2)
        needed_K = np.where(np.isfinite(needed_K), np.maximum(needed_K, min_examples), num_examples_K)
        return np.minimum(needed_K, num_examples_K).astype(np.int64)

    def sum_by_domain(self, values_E: np.ndarray) -> np.ndarray:
        """Return the sums [K] of one value an example."""
        return np.bincount(self.domain_ids_E, weights=values_E, minlength=self.num_domains)

    def num_loss_tokens(self) -> np.ndarray:
        """Return the loss tokens of each domain, int64 [K]."""
        return self._num_loss_tokens_K

    def mean(self) -> np.ndarray:
        """Return sum of losses / sum of tokens [K] in nats per loss token; NaN for a domain without tokens."""
        return self._mean_K

    def standard_error(self) -> np.ndarray:
        """Return the standard error of `mean` [K], clustered by example.

        mean = sum s_i / sum t_i is a ratio, so its error comes from the residuals s_i - mean * t_i of the examples.
        Source: the ratio estimator, Cochran, Sampling Techniques, chapter 6.
        NaN for a domain with fewer than two examples that bear loss.
        """
        return self._error_of(self._residuals_E)

    def is_same_examples(self, other: ExampleLosses) -> bool:
        """Return whether both measure the same examples, as far as domains and token counts tell."""
        return np.array_equal(self.domain_ids_E, other.domain_ids_E) and np.array_equal(
            self.num_loss_tokens_E, other.num_loss_tokens_E
        )

    def change_standard_error(self, before: ExampleLosses) -> np.ndarray:
        """Return the standard error [K] of mean - before's mean, paired by example.

        What makes an example hard cancels in the difference of its two residuals, so a change far smaller than the
        mean's own error is seen. Where the examples differ, the two errors are added as independent.
        """
        if not self.is_same_examples(before):
            return np.hypot(self.standard_error(), before.standard_error())
        return self._error_of(self._residuals_E - before._residuals_E)

    def _error_of(self, residuals_E: np.ndarray) -> np.ndarray:
        """Return sqrt(n / (n - 1) * sum residual^2) / tokens for each domain, n its examples that bear loss."""
        num_examples_K = self._num_bearing_K
        with np.errstate(invalid="ignore", divide="ignore"):
            factor_K = np.where(num_examples_K > 1, num_examples_K / (num_examples_K - 1), np.nan)
            return np.sqrt(factor_K * self.sum_by_domain(residuals_E**2)) / self.num_loss_tokens()
