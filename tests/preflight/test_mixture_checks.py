"""Findings about the mixture that need no recipe: exact numbers of small supplies."""

from types import SimpleNamespace

import numpy as np

from versatune_ds.domains import DomainSet
from versatune_ds.mixture.offline.outlook import Supply
from versatune_ds.preflight.mixture import _check_supply


def findings(num_steps, *, weights):
    """Return the findings about 100 and 300 units of data, 40 of which are drawn in a step."""
    config = SimpleNamespace(train=SimpleNamespace(epochs=None))
    subject = SimpleNamespace(config=config, domain_set=DomainSet(("law", "code")))
    supply = Supply(sizes_K=np.array([100.0, 300.0]), units_per_step=40.0)
    return list(_check_supply(subject, supply, np.array(weights), num_steps=num_steps))


def test_twenty_steps_of_forty_units_are_two_passes_over_four_hundred_units():
    (found,) = findings(20, weights=[0.5, 0.5])
    assert (found.level, found.key) == ("ok", "train.steps")
    assert found.found == (
        "about: 20 steps are 2 passes over all data, 10 steps each, and 4 over the smallest domain, law"
    )


def test_passes_over_all_data_do_not_depend_on_the_weights_and_those_over_a_domain_do():
    texts = [findings(20, weights=weights)[0].found for weights in ([0.25, 0.75], [0.9, 0.1])]
    assert all("2 passes over all data, 10 steps each" in text for text in texts)
    assert [text.split(" and ")[-1] for text in texts] == [
        "2 over the smallest domain, law",
        "7.2 over the smallest domain, law",
    ]


def test_a_domain_repeated_often_is_still_a_warning_beside_the_passes():
    assert [finding.level for finding in findings(40, weights=[0.9, 0.1])] == ["ok", "warn"]
