"""Messages about mistakes use keys and values, and mention no class, Python type or pydantic."""

import copy
import re

import pytest
from pydantic import BaseModel

from versatune_ds.comparison.plan import ComparisonPlan
from versatune_ds.config import RunConfig
from versatune_ds.config.expected_values import PATTERNS
from versatune_ds.config.load import parse_section, set_by_dotted_key
from versatune_ds.config.section import is_section, scalar_types

RECIPE = {
    "run": {"name": "mine"},
    "model": {"from_config": {"model_type": "llama"}},
    "data": {"domains": {"law": {"train": "law.jsonl"}}},
    "train": {"steps": 10},
    "mixture": {"reference": {"start_fraction": 0.85}},
}
PLAN = {"name": "a", "recipe": "r.yaml", "base": {"recipe": "b.yaml"}, "runs": {"x": {}}, "seeds": [1], "baseline": "x"}
VALUES = ("null", "true", "off", "3", "-1", "1.5", "-.inf", ".nan", "1e400", "2024-01-02", "text", "''", "[]", "[[]]",
          "[1, x]", "[{a: 1}]", "{}", "{a: 1}", "{a: {b: []}}", "{1: null}", "007", "x" * 300)  # fmt: skip


def classes_of(section, seen=None):
    """Return the names of all sections below one."""
    seen = set() if seen is None else seen
    seen.add(section.__name__)
    for field in section.model_fields.values():
        for kind in leaves(field.annotation):
            if is_section(kind) and kind.__name__ not in seen:
                classes_of(kind, seen)
    return seen


def leaves(annotation):
    """Yield an annotation and all types in it."""
    yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from leaves(part)


def keys_of(section, prefix=""):
    """Yield the dotted keys of a section and all below it."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        for kind in scalar_types(field.annotation):
            if is_section(kind):
                yield from keys_of(kind, f"{prefix}{name}.")


OF_PYTHON = re.compile(
    r"pydantic|instance of|valid (dict|tuple|list|string)|NoneType|PosixPath|function-|lax-or|dict\[|tuple\[|"
    r"should|valid (boolean|integer|number)|parse|pattern|_source_kind|<class|Traceback|datetime|None\b|True\b|False\b"
)


@pytest.mark.parametrize("given", VALUES)
@pytest.mark.parametrize(("section", "values"), [(RunConfig, RECIPE), (ComparisonPlan, PLAN)], ids=["recipe", "plan"])
def test_no_message_mentions_classes_or_python_types(section: type[BaseModel], values, given):
    classes = classes_of(section)
    keys = [*keys_of(section), "data.domains.law", "data.domains.law.train", "data.domains.law.valid", "run.unknown",
            "data.domains.law.columns", "data.domains.law.train.0"]  # fmt: skip
    for key in keys if section is RunConfig else keys_of(section):
        changed = copy.deepcopy(values)
        try:
            set_by_dotted_key(changed, f"{key}={given}")
            parse_section(changed, section)
        except ValueError as error:
            text = str(error)
            assert not OF_PYTHON.search(text), f"{key}={given}: {text}"
            assert not [name for name in classes if re.search(rf"\b{name}\b", text)], f"{key}={given}: {text}"
            assert all(len(line) < 400 for line in text.splitlines()), f"{key}={given}: {text}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("resume=3", "resume: expected key: value pairs, with the keys allow (got 3)"),
        ("data.domains.law=3",
         "data.domains.law: expected key: value pairs, with the keys train, valid, columns, description (got"),
        ("data.max_bad_rows=[]", "data.max_bad_rows: expected a number (got [])"),
        ("resume.allow=data", "resume.allow: expected a list such as [a, b] (got 'data')"),
        ("train.deepspeed=[1]", "train.deepspeed: expected a path or key: value pairs (got [1])"),
        ("train.learning_rate=.inf", "train.learning_rate: expected a finite number (got inf)"),
        ("train.steps=1.5", "train.steps: expected a whole number (got 1.5)"),
        ("train.steps=on", "train.steps: expected a whole number (got 'on')"),
        ("train.steps=010", "train.steps: 010: YAML reads numbers that begin with 0 in base 8; leave the 0 out"),
        ("train.learning_rate=fast", "train.learning_rate: expected a number (got 'fast')"),
        ("model.gradient_checkpointing=maybe", "model.gradient_checkpointing: expected true or false (got 'maybe')"),
        ("train.precision=fp8", "train.precision: expected 'fp32', 'bf16' or 'fp16' (got 'fp8')"),
        ("detect.labeller={kind: hf}",
         "detect.labeller: expected 'auto', 'embedding', 'classifier', 'openai' or 'hf' (got key: value pairs)"),
        ("data.domains.int={}", "data.domains.int.train: missing; this key is required"),
    ],
)  # fmt: skip
def test_a_message_states_what_is_expected_in_yaml(override, message):
    values = copy.deepcopy(RECIPE)
    set_by_dotted_key(values, override)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole text is compared)
        parse_section(values, RunConfig)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_mistake_inside_a_mapping_is_one_line_where_the_key_may_be_a_number_too():
    values = {**RECIPE, "data": {"row_tokens": 64, "synthetic": {"num_rows": {"law": "many"}}}}
    with pytest.raises(ValueError, match=r"^data.synthetic.num_rows.law: expected a whole number \(got 'many'\)$"):
        parse_section(values, RunConfig)


def patterns_of(section):
    """Yield the patterns of the texts of a section and all below it."""
    for field in section.model_fields.values():
        yield from filter(None, (getattr(bound, "pattern", None) for bound in field.metadata))
        for kind in leaves(field.annotation):
            if is_section(kind):
                yield from patterns_of(kind)


@pytest.mark.parametrize("section", [RunConfig, ComparisonPlan])
def test_every_pattern_has_words_that_a_user_need_not_decode(section):
    patterns = set(patterns_of(section))
    assert patterns
    assert patterns <= set(PATTERNS)
