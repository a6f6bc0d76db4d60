"""A domain set fixes the order of names and refuses what would break it."""

import pytest

from versatune_ds.domains import DomainSet


def test_names_keep_their_order():
    domains = DomainSet(("law", "code", "art"))
    assert list(domains) == ["law", "code", "art"]
    assert domains.id_of("code") == 1
    assert domains.to_dict([0.5, 0.25, 0.25]) == {"law": 0.5, "code": 0.25, "art": 0.25}


def test_a_mapping_is_read_by_name_and_not_by_its_own_order():
    domains = DomainSet(("law", "code"))
    assert domains.from_dict({"code": 2, "law": 1}, what="x").tolist() == [1.0, 2.0]


@pytest.mark.parametrize("names", [(), ("law", "law"), ("law", ""), ("a\x1b[31m",)])
def test_names_that_cannot_serve_as_ids_are_refused(names):
    with pytest.raises(ValueError, match=r"^data\.domains: "):
        DomainSet(names)


def test_an_unknown_domain_is_refused_with_the_nearest_name():
    domains = DomainSet(("law", "medicine"))
    with pytest.raises(ValueError, match=r"^prior\.json: unknown domain 'medicin'; did you mean 'medicine'\?$"):
        domains.from_dict({"law": 1, "medicin": 1}, what="prior.json")


def test_a_missing_domain_is_reported_by_name():
    with pytest.raises(ValueError, match=r"^prior\.json: no value for code; give one for each of law, code$"):
        DomainSet(("law", "code")).from_dict({"law": 1}, what="prior.json")
