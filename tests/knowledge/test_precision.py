"""How many sequences are enough, and how long drawing them will take."""

from dataclasses import replace

import numpy as np
import pytest

from versatune_ds.domains import DomainSet
from versatune_ds.knowledge.estimate import Shares
from versatune_ds.knowledge.precision import precision_of
from versatune_ds.knowledge.reliability.interval_parts import widest_interval
from versatune_ds.knowledge.reliability.source_error import widened


def precision(*, wanted, num_sequences=500, unparsed=0.0):
    lower, upper = np.array([0.28, 0.66]), np.array([0.32, 0.74])
    shares = Shares(shares_K=np.array([0.3, 0.7]), lower_K=lower, upper_K=upper + unparsed, unparsed=unparsed)
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


def test_text_without_a_label_is_no_reason_to_draw_more_and_the_log_says_what_it_adds():
    found = precision(wanted=0.05, unparsed=0.2)
    assert (found.widest, found.unlabelled, found.is_enough) == (pytest.approx(0.04), 0.1, True)
    assert found.describe(budget=800, sequences_per_second=1.0) == (
        "widest interval +-0.040 (code), and +-0.100 for text without a label, which no number of sequences changes"
    )
    assert precision(wanted=0.02, unparsed=0.2).num_needed() == precision(wanted=0.02).num_needed()


BY_LABELS = (
    "the interval of code is +-0.106: +-0.040 for the number of sequences, +-0.098 for labels (texts left out of its "
    "fit); more sequences narrow the first part alone, labelled texts of every domain (--labelled FILE) or better "
    "descriptions (data.domains.NAME.description) the rest"
)
BY_UNLABELLED = (
    "the interval of code is +-0.140: +-0.040 for the number of sequences, +-0.000 for labels (the labelled texts), "
    "+-0.100 for text without a label; more sequences narrow the first part alone, sequences that begin as in the "
    "model's training (detect.sampling.prefix) or a domain for the rest or better descriptions "
    "(data.domains.NAME.description) the rest"
)


@pytest.mark.parametrize(
    ("error", "unparsed", "is_known", "expected"),
    [(0.0, 0.0, False, None), (0.05, 0.0, False, BY_LABELS), (0.0, 0.2, True, BY_UNLABELLED)],
)
def test_the_parts_of_an_interval_show_which_of_them_more_sequences_narrow(error, unparsed, is_known, expected):
    shares_K, errors_K = np.array([0.4, 0.6]), np.array([0.0, error])
    drawn = Shares(shares_K=shares_K, lower_K=shares_K - 0.04, upper_K=shares_K + 0.04 + unparsed, unparsed=unparsed)
    drawn = replace(drawn, upper_K=drawn.upper_K + np.array([0.0, 1e-6]))  # so that code has the widest one
    text = widest_interval(
        widened(drawn, errors_K),
        drawn=drawn,
        error_K=errors_K,
        domain_set=DomainSet(("law", "code")),
        is_known=is_known,
    )
    assert text == expected
