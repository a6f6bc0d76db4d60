"""Where a domain's description comes from: the recipe, a common name, or the terms of its rows."""

import pytest
from base_model import detect_config

from versatune_ds.domains import DomainSet
from versatune_ds.knowledge.domain_descriptions import describe_domains, key_terms, parts_of, recipe_descriptions
from versatune_ds.knowledge.label_texts import LabelledTexts

TEXTS = LabelledTexts(
    texts=[
        "the tenant shall pay rent",
        "the tenant and rent",
        "a tenant moves",
        "bake bread",
        "bread and salt",
        "old bread",
    ],
    domain_ids=[0, 0, 0, 1, 1, 1],
)


def test_the_recipe_is_asked_before_defaults_and_rows():
    found = describe_domains({"law": "rules"}, TEXTS, domain_set=DomainSet(("law", "baking")))
    assert (found[0].text, found[0].origin) == ("rules", "recipe")
    assert (found[1].text, found[1].origin) == ("baking: bread", "rows")


@pytest.mark.parametrize(("name", "word"), [("law", "courts"), ("Medical", "diseases"), ("programming", "algorithms")])
def test_common_names_and_their_synonyms_have_a_description(name, word):
    found = describe_domains({}, TEXTS, domain_set=DomainSet((name, "x")))[0]
    assert found.origin == "default"
    assert word in found.text


def test_key_terms_are_frequent_in_their_domain_and_rare_in_others():
    terms = key_terms(TEXTS, num_domains=2)
    assert terms == [["tenant"], ["bread"]]  # "rent" is in two rows alone


def test_rows_without_words_have_no_terms():
    texts = LabelledTexts(texts=["1 2", "3"], domain_ids=[0, 1])
    assert describe_domains({}, texts, domain_set=DomainSet(("a", "b")))[0].text == "a"


def test_a_description_of_several_parts_is_compared_part_by_part():
    assert parts_of("courts; crimes") == ["courts; crimes", "courts", "crimes"]
    assert parts_of("courts") == ["courts"]


def test_a_domain_described_twice_is_refused(tmp_path):
    law = "data.domains.law={train: law.jsonl, description: courts}"
    base = ("data.synthetic=null", law)
    config = detect_config(tmp_path, tmp_path, *base)
    assert recipe_descriptions(config) == {"law": "courts"}
    config = detect_config(tmp_path, tmp_path, *base, "detect.descriptions={law: crimes}")
    with pytest.raises(ValueError, match=r"law: data.domains.law.description is another text; keep"):
        recipe_descriptions(config)
