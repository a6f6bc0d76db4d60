"""Metrics are grouped by quantity with the domains as lines, and every domain's metric keeps a name of its own."""

from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.monitor.section_names import by_section, is_hidden, section_name

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=8)
QUANTITIES = st.sampled_from(["loss", "weight", "forgetting_from_best", "forgetting_degree", "loss_stderr"])


def test_a_domains_metric_is_named_after_its_quantity_and_others_keep_their_names():
    values = {"train/loss": 1.0, "domain/law/loss": 2.0, "domain/law/forgetting_from_best": 0.1, "validation/loss": 2.5}
    assert by_section(values) == {"train/loss": 1.0, "loss/law": 2.0, "forgetting/law": 0.1, "validation/loss": 2.5}


def test_a_slash_in_a_domains_name_stays_in_it():
    assert section_name("domain/law/eu/loss") == "loss/law/eu"


def test_standard_errors_alone_are_hidden():
    assert is_hidden(section_name("domain/law/loss_stderr"))
    assert is_hidden(section_name("domain/law/change_from_best_stderr"))
    assert not is_hidden(section_name("domain/law/loss"))
    assert not is_hidden("train/loss")


@given(st.sets(st.tuples(NAMES, QUANTITIES)))
def test_no_two_metrics_share_a_name(pairs):
    values = {f"domain/{name}/{quantity}": 1.0 for name, quantity in pairs}
    assert len(by_section(values)) == len(values)
