"""plan.json: read back as it was written, refused in one line, taken as a prior."""

import json

import pytest
from plans import plan_content

from versatune_ds.mixture.planning.plan_file import Plan, is_plan, read_plan

WRONG = object()


def test_a_written_plan_is_read_back_with_every_entry(tmp_path):
    content = plan_content(front=[{"mean": 1.0, "label": None}], target="law", worst_excess=0.25)
    (tmp_path / "plan.json").write_text(json.dumps(content))
    plan = read_plan(tmp_path / "plan.json", what="mixture.prior")
    assert plan.to_dict() == {**content, "effects": {}}
    assert plan.track is None  # as in a file of an earlier version
    assert Plan.from_dict({**content, "track": []}, place="x").to_dict()["track"] == []
    assert (plan.purpose, plan.target, plan.worst_excess) == ("balanced", "law", 0.25)


def test_an_entry_that_may_be_absent_has_a_default():
    content = plan_content()
    for key in ("front", "calibration", "provenance", "weight_unit"):
        del content[key]
    plan = Plan.from_dict(content, place="x")
    assert (list(plan.front), dict(plan.calibration), plan.weight_unit, plan.target) == ([], {}, "tokens", None)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("weights", {"law": "much"}, r"weights: expected {domain: number}, got"),
        ("predicted", {"law": {"loss": 1}}, r"predicted: expected {domain: {loss, stderr, base, change}}, got"),
        ("predicted", {"x": {"loss": 1, "stderr": 1, "base": 1, "change": 1}}, "predicted: x has no weight"),
        ("planner", 3, "planner: expected the name of a planner, got 3"),
        ("for", "fun", "for: expected one of mean, balanced, target, got fun"),
        ("bounds", None, "bounds: expected {domain: number}, got nothing"),
        ("budget_steps", 0.5, "budget_steps: expected a positive whole number, got 0.5"),
        ("front", "x", "front: expected a list of points, got x"),
        ("track", {"law": 1}, "track: expected a list of {fraction, losses, stderrs} with fractions that rise"),
        ("track", [{"fraction": 0, "losses": {}, "stderrs": {}}], "track: expected a list of"),
        ("track", [{"fraction": f, "losses": {}, "stderrs": {}} for f in (0, 1, 0.5)], "track: expected a list of"),
        ("track", [{"fraction": f, "losses": {"law": "x"}, "stderrs": {}} for f in (0, 1)], "track: expected a"),
        ("provenance", 3, "provenance: expected a mapping, got 3"),
    ],
)
def test_a_wrong_entry_is_refused_in_one_line_with_its_key_and_what_to_do(tmp_path, key, value, message):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan_content(**{key: value})))
    with pytest.raises(ValueError, match=message) as caught:
        read_plan(path, what="mixture.prior")
    assert str(caught.value).startswith(f"mixture.prior: {path}: {key}: ")
    assert str(caught.value).endswith("; write it again with versatune plan")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ['{"weights": {"law": 1.0}, "method": "both"}', "{", None])
def test_a_prior_a_corrupt_file_and_a_missing_one_are_no_plan(tmp_path, text):
    path = tmp_path / "prior.json"
    if text is not None:
        path.write_text(text)
    assert read_plan(path, what="mixture.prior") is None
    assert not is_plan(None)
