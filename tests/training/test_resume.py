"""A run resumes from a checkpoint that fits; a difference is refused in one line unless `resume.allow` lists it."""

from pathlib import Path

import pytest

from versatune_ds.config.recipe import ResumeConfig
from versatune_ds.training.resume import ResumePoint, check_identity, restart_changed

SAVED = {
    "data": {"law": "a", "code": "b"}, "validation": {"law": "c", "code": "d"}, "tokenizer": "t",
    "domains": ["law", "code"], "rows_per_batch": 8, "world_size": 2, "zero_stage": 2,
    "weights": [0.5, 0.5], "references": None,
}  # fmt: skip
DEFAULT = ("world_size", "zero_stage")


def check(*, allow=DEFAULT, **now):
    return check_identity(SAVED, {**SAVED, **now}, folder=Path("x"), allow=allow)


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"data": {"law": "A", "code": "b"}},
         r"^x: data of law changed .*; restore the earlier files, or allow .*'resume\.allow=\[data\]', or start"),
        ({"validation": {"law": "c", "code": "D"}}, r"^x: validation of code changed since .*allow=\[data\]'"),
        ({"tokenizer": "u"}, r"^x: saved with tokenizer 't', now 'u'; use the earlier .*allow=\[tokenizer\]'"),
        ({"weights": [0.4, 0.6]}, r"^x: saved with weights \[0\.5, 0\.5\], now \[0\.4, 0\.6\]; .*allow=\[mixture\]'"),
        ({"references": [1.0, 2.0]}, r"^x: saved with references None, now .*allow=\[mixture\]'"),
        ({"rows_per_batch": 16}, r"^x: saved with rows_per_batch 8, now 16; use the earlier value, or .*--fresh$"),
        ({"sequence_parallel": 2, "allow": ()},
         r"^x: saved with sequence_parallel 1, now 2; use the earlier value, or .*'resume.allow=\[world_size\]'"),
        ({"zero_stage": 3}, r"^x: saved under ZeRO stage 2, now 3: DeepSpeed converts between stages 1 and 2 only; "),
        ({"zero_stage": 0}, r"^x: saved under ZeRO stage 2, now 0: DeepSpeed converts"),
        ({"domains": ["law", "art"], "data": {"law": "a", "art": "b"}, "weights": [1.0, 0.0]},
         r"^x: saved with domains law, code, now law, art: a run keeps its domains\. Use the earlier domains, or"),
    ],
)  # fmt: skip
def test_each_difference_is_refused_in_one_line_with_the_remedy(now, message):
    with pytest.raises(ValueError, match=message) as raised:
        check(**now)
    assert "\n" not in str(raised.value)


def test_several_differences_are_reported_one_a_line():
    lines = r"^x: data of .*\nx: saved with tokenizer .*\nx: saved with world_size 2"
    with pytest.raises(ValueError, match=lines) as no:
        check(data={"law": "A", "code": "B"}, tokenizer="u", world_size=4, allow=())
    assert "use --processes 2, or allow it with 'resume.allow=[data, tokenizer, world_size]'" in str(no.value)


def test_what_may_differ_by_default_is_neither_lost_nor_repeated_where_more_is_allowed():
    assert ResumeConfig().allowed == ("world_size", "zero_stage")
    assert ResumeConfig(allow=("data",)).allowed == ("world_size", "zero_stage", "data")
    assert ResumeConfig(allow=()).allowed == ()
    with pytest.raises(ValueError, match=r"or allow it with 'resume\.allow=\[data, tokenizer\]'"):
        check(tokenizer="u", allow=ResumeConfig(allow=("data",)).allowed)


def test_an_allowed_difference_is_accepted_and_returned():
    assert check() == frozenset()
    assert check(sequence_parallel=1) == frozenset(), "earlier versions recorded none"
    assert check(sequence_parallel=2) == {"sequence_parallel"}
    assert check(world_size=4, zero_stage=1) == {"world_size", "zero_stage"}
    assert check(data={"law": "A", "code": "b"}, validation={}, tokenizer="u", allow=("data", "tokenizer")) == {
        "data", "validation", "tokenizer"
    }  # fmt: skip
    assert check(weights=[1.0, 0.0], references=[1.0, 1.0], allow=("mixture",)) == {"weights", "references"}
    # A proportional prior follows the data: one difference, not two.
    assert check(data={"law": "A", "code": "b"}, weights=[0.3, 0.7], allow=("data",)) == {"data"}


@pytest.mark.parametrize(
    ("stage", "changed", "expected"),
    [(2, {"world_size"}, True), (1, {"zero_stage"}, True), (3, {"world_size"}, True), (0, {"world_size"}, False),
     (2, {"data"}, False), (2, set(), False)],
)  # fmt: skip
def test_only_a_partitioned_optimizer_needs_conversion(stage, changed, expected):
    state = {"identity": {"zero_stage": stage}}
    point = ResumePoint(folder=Path("x"), state=state, changed=frozenset(changed), changed_domains=())
    assert point.needs_conversion == expected


def test_a_changed_domain_starts_over_and_the_others_continue():
    saved = {"step": 5, "domains": ["law", "code"], "num_examples": [10, 20], "lengths_digest": "x",
             "draws": [7, 9], "deficits": [3, -3]}  # fmt: skip
    current = {**saved, "step": 0, "num_examples": [11, 20], "lengths_digest": "y", "draws": [0, 0], "deficits": [0, 0]}
    assert restart_changed(saved, current, changed_domains=("law",)) == {
        **saved, "num_examples": [11, 20], "lengths_digest": "y", "draws": [0, 9]
    }  # fmt: skip
    assert restart_changed(saved, current, changed_domains=()) == saved
