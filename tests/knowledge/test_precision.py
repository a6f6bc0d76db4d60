"""How many sequences are enough, and how long drawing them will take."""

import numpy as np
import pytest

from versatune_ds.domains import DomainSet
from versatune_ds.knowledge.estimate import Shares
from versatune_ds.knowledge.precision import precision_of


def precision(*, wanted, num_sequences=500):
    shares = Shares(shares_K=np.array([0.3, 0.7]), lower_K=np.array([0.28, 0.66]), upper_K=np.array([0.32, 0.74]))
    return precision_of(shares, domain_set=DomainSet(("law", "code")), num_sequences=num_sequences, wanted=wanted)


def test_half_the_interval_needs_four_times_the_sequences():
    found = precision(wanted=0.02)
    assert (found.domain, found.widest) == ("code", pytest.approx(0.04))
    assert not found.is_enough
    assert found.num_needed() == pytest.approx(2000, abs=1)
    assert found.describe(budget=10_000, sequences_per_second=10.0) == (
        f"widest interval +-0.040 (code); +-0.02 needs about {found.num_needed():,} sequences; about 2:30 left"
    )


def test_a_budget_below_what_is_needed_is_mentioned_and_bounds_the_time_left():
    text = precision(wanted=0.02).describe(budget=800, sequences_per_second=10.0)
    assert text.endswith("sequences, detect.num_sequences allows 800; about 0:30 left")
    assert "left" not in precision(wanted=0.02).describe(budget=800, sequences_per_second=None)


def test_an_interval_that_is_narrow_enough_needs_no_more():
    found = precision(wanted=0.05)
    assert found.is_enough
    assert found.num_needed() == 500
    assert found.describe(budget=800, sequences_per_second=1.0) == "widest interval +-0.040 (code)"


def test_without_a_wanted_interval_nothing_is_needed():
    found = precision(wanted=None)
    assert (found.is_enough, found.num_needed()) == (False, None)
