"""`versatune check` says where training text and the prompts of generation differ, and shows both with --render."""

from __future__ import annotations

import json

import pytest
import yaml
from chat_data import chat_rows, write_jsonl
from command_line import command_of
from model_tokenizers import tokenizer_of

from versatune_ds.config import load_config
from versatune_ds.preflight.prompts import check_prompts
from versatune_ds.preflight.subject import CheckRequest, Subject

SYSTEM = {"role": "system", "content": "Be kind."}


@pytest.fixture
def recipe_of(tmp_path):
    """Return a function that writes a recipe with the tokenizer of a model family."""

    def written(name, **rows):
        tokenizer_of(name).save_pretrained(tmp_path / "tokenizer")
        for domain, lines in rows.items():
            write_jsonl(tmp_path / "data" / "train" / f"{domain}.jsonl", lines)
        values = {
            "run": {"name": "mine", "output_dir": str(tmp_path / "runs")},
            "model": {"from_config": {"model_type": "llama", "hidden_size": 32}, "tokenizer": f"{tmp_path}/tokenizer"},
            "data": {"folder": str(tmp_path / "data"), "row_tokens": 128, "valid_fraction": 0.2},
            "train": {"steps": 10, "rows_per_batch": 8},
            "mixture": {"policy": "constant"},
        }
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return written


def found_in(recipe, *overrides):
    return list(check_prompts(Subject(load_config(recipe, overrides), CheckRequest(), num_gpus_here=0)))


def with_system(rows):
    return [{"messages": [SYSTEM, *row["messages"]]} for row in rows]


def test_texts_that_agree_are_one_line_with_what_is_good_to_know(recipe_of):
    (line,) = found_in(recipe_of("llama3", law=chat_rows(30), code=with_system(chat_rows(3))))
    assert (line.level, line.check, line.key) == ("ok", "prompt", "model.tokenizer")
    assert line.text == (
        "code, law: in 11 conversations the prompt is the beginning of the training text, and the loss starts right "
        "behind it; both as of 26 Jul 2024, which the exported template keeps; tokenise prompts with "
        "add_special_tokens=False, or they begin with <|begin_of_text|> twice; where rows have no system text, the "
        'template adds its own ("Knowledge until: December 2023 Today: 26 Jul 2024")'
    )


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("qwen3", "the template writes an empty thinking block before answers without reasoning, which bears loss"),
        ("qwen2_5", 'where rows have no system text, the template adds its own ("You are Qwen, a helpful assistant.")'),
        ("phi4", None),
    ],
)
def test_what_a_template_adds_to_both_texts_is_a_remark(recipe_of, name, note):
    (line,) = found_in(recipe_of(name, law=chat_rows(1)))
    _, *notes = line.found.split("; ")
    assert notes == [] if note is None else notes[0].startswith(note)


def test_a_difference_names_domain_both_texts_effect_and_way_out(recipe_of):
    refused = [{"text": "A plain text."}, {"messages": []}, *with_system(chat_rows(2))]
    warning, line = found_in(recipe_of("gemma2", law=chat_rows(4), code=refused))
    assert (warning.level, warning.check, warning.key) == ("warn", "prompt", "model.tokenizer")
    assert warning.text.startswith(
        "code: 2 of 2 conversations: the chat template does not print all parts of a conversation in their form or "
        "place, so training writes them as text (the system text): a prompt rendered from the same messages lacks "
        "them, has them elsewhere or is refused; write them into the messages"
    )
    assert line.found.startswith("law: in 4 conversations")


def test_a_thinking_block_that_the_prompt_opens_is_a_warning_for_each_domain(recipe_of):
    warnings = found_in(recipe_of("deepseek_r1", law=chat_rows(1), code=chat_rows(1)))
    assert [(warning.level, warning.found.partition(":")[0]) for warning in warnings] == [
        ("warn", "code"), ("warn", "law"),
    ]  # fmt: skip
    assert warnings[0].found == (
        "code: 1 of 1 conversations: the prompt opens a thinking block, the training text has none in this place "
        '(training "s 0 plus 0?<|Assistant|>It is 0.<|end_of_sentence|>", prompt "s 0 plus 0?<|Assistant|><think>\\n")'
        ": the model writes its answer inside a block that it never learned to close"
    )


def test_plain_text_has_no_prompt_to_compare(recipe_of):
    assert found_in(recipe_of("qwen2_5", law=[{"text": f"Plain text {i}."} for i in range(9)])) == []


def test_render_prints_the_complete_training_text_of_a_conversation_that_differs_and_its_prompt(recipe_of, capsys):
    rows = [*chat_rows(1), {"messages": [SYSTEM, *chat_rows(1)[0]["messages"]]}]
    called = command_of(capsys)("check", recipe_of("gemma2", law=rows), "--render", "--json")
    shown = json.loads(called.out)["examples"]["law"]
    assert shown == (
        "\u27e6<bos><start_of_turn>user\nBe kind.\n\nsum: what is 0 plus 0?<end_of_turn>\n<start_of_turn>model\n\u27e7"
        "It is 0.<end_of_turn>\u27e6\n\u27e7\n"
        "--- law: the prompt from which generation would write its last answer\n"
        "<bos><start_of_turn>user\nBe kind.\n\nsum: what is 0 plus 0?<end_of_turn>\n<start_of_turn>model\n"
    )
