"""No domain has less than a tenth of the uniform weight without a line that says why, and none has 0."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.config import DetectConfig
from versatune_ds.domains import DomainSet
from versatune_ds.knowledge.detect_recipe import prior_table, prior_values
from versatune_ds.knowledge.detection import Detection
from versatune_ds.knowledge.estimate import estimate
from versatune_ds.knowledge.reliability.source_error import LeftOutLabels, with_source_error
from versatune_ds.knowledge.sequences import DrawnSequence


def detection(labels, sizes, *, unit):
    """What a detection found from labels of sequences of these sizes, with the labeller's errors in the intervals."""
    num_domains = labels.shape[1]
    known = LeftOutLabels(
        labels_NK=np.eye(num_domains) * 0.7 + 0.3 / num_domains,
        ids_N=np.arange(num_domains),
        source_ids_N=np.zeros(num_domains, dtype=int),
        is_other_source_K=np.ones(num_domains, dtype=bool),
    )
    found, *_ = with_source_error(
        estimate(labels, sizes, prior_shift=True, seed=0, num_draws=20), known, prior_shift=True, seed=0
    )
    sequences = [DrawnSequence(text="a", num_tokens=int(size), is_cut=False, repeated_share=0.0) for size in sizes]
    return Detection(
        domain_set=DomainSet(tuple(f"domain{k}" for k in range(num_domains))),
        base_model=SimpleNamespace(name="made up", digest="0" * 32),
        tokenizer_digest="0" * 32,
        weight_unit=unit,
        method="generation",
        folder=Path(),
        labeller={"name": "made up"},
        sequences=sequences,
        rounds=[found.tokens.shares_K],
        estimate=found,
        labels_NK=labels,
    )


@pytest.mark.slow
@given(
    counts=st.lists(st.integers(0, 300), min_size=2, max_size=8).filter(any),
    certainty=st.floats(0.3, 1.0),
    seed=st.integers(0, 100),
    unit=st.sampled_from(["tokens", "examples"]),
)
def test_a_weight_below_a_tenth_of_uniform_is_explained_on_the_page_and_in_the_file(counts, certainty, seed, unit):
    num_domains = len(counts)
    labels = np.eye(num_domains)[np.repeat(np.arange(num_domains), counts)]
    labels = certainty * labels + (1 - certainty) / num_domains
    sizes = np.random.default_rng(seed).integers(1, 200, len(labels)).astype(float)
    values = prior_values(detection(labels, sizes, unit=unit), DetectConfig())
    low = {name for name, weight in values["weights"].items() if weight < 0.1 / num_domains}
    assert set(values["low_weights"]) == low
    table = prior_table(values)
    for name in low:
        assert f"{name}: weight {values['weights'][name]:.4f} is below a tenth of uniform" in table
    assert all(weight > 0 for weight in values["weights"].values())
    assert all(values["intervals"][name][1] > values["weights"][name] for name in low)
    assert sum(values["weights"].values()) == pytest.approx(1)
