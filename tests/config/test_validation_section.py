"""The validation section: off by default, and one line for each mistake."""

import pytest

from versatune_ds.config.load import parse_config

RECIPE = {
    "run": {"name": "x"},
    "model": {"from_config": {"model_type": "llama"}},
    "data": {"folder": "d"},
    "train": {"steps": 10},
    "mixture": {},
}


def test_by_default_the_number_of_examples_is_fixed_and_time_is_not_limited():
    section = parse_config(RECIPE).validation
    assert (section.target_standard_error, section.max_share) == (None, None)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"max_share": 0}, r"^validation\.max_share: expected more than 0 \(got 0\)"),
        ({"max_share": 2}, r"^validation\.max_share: expected less than 1 \(got 2\)"),
        ({"target_standard_error": -1}, r"^validation\.target_standard_error: expected more than 0"),
        (
            {"target_standard_error": 0.1, "min_examples_per_domain": 20, "max_examples_per_domain": 10},
            r"^validation\.min_examples_per_domain: 20 is more than validation\.max_examples_per_domain, 10; lower it",
        ),
    ],
)
def test_a_mistake_is_reported_in_one_line(section, message):
    with pytest.raises(ValueError, match=message):
        parse_config(RECIPE | {"validation": section})


def test_few_examples_are_allowed_without_a_target_standard_error():
    assert parse_config(RECIPE | {"validation": {"max_examples_per_domain": 5}}).validation.max_examples_per_domain == 5
