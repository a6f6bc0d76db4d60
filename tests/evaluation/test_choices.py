"""Multiple choice: reading questions, which tokens bear loss, which option wins."""

import numpy as np
import pytest
from chat_data import CHATML, tiny_tokenizer, write_jsonl

from versatune_ds.evaluation.choices import ChoiceQuestion, encode_choices, read_choices


def record(question="what?", choices=("a", "b"), answer=0):
    return {"question": question, "choices": list(choices), "answer": answer, "source": "somewhere"}


def questions_of(*questions):
    return [ChoiceQuestion(question=q, choices=choices, answer=answer) for q, choices, answer in questions]


def encoded(questions, *, row_tokens=64, template=CHATML):
    return encode_choices(questions, tokenizer=tiny_tokenizer(), template=template, row_tokens=row_tokens)


def test_questions_of_files_and_folders_are_listed_by_file_name(tmp_path):
    write_jsonl(tmp_path / "all" / "law.jsonl", [record(), record(answer=1)])
    write_jsonl(tmp_path / "all" / "README.txt", ["Questions of law."])
    write_jsonl(tmp_path / "art.jsonl.gz".removesuffix(".gz"), [record(choices=("x", "y", "z"), answer=2)])
    found = read_choices([tmp_path / "all", tmp_path / "art.jsonl"])
    assert {name: [question.answer for question in questions] for name, questions in found.items()} == {
        "law": [0, 1], "art": [2],
    }  # fmt: skip


@pytest.mark.parametrize(
    "bad",
    [
        record(answer=2),
        record(answer="A"),
        record(choices=("only",)),
        record(choices=("a", " ")),
        {"question": "q"},
        "not json",
        3,
    ],
)
def test_a_record_that_is_not_a_question_is_reported_with_file_and_line(tmp_path, bad):
    path = write_jsonl(tmp_path / "law.jsonl", [record(), bad])
    with pytest.raises(ValueError, match=rf"^--choices: {path}:2: .*expected"):
        read_choices([path])


def test_a_record_without_a_field_is_reported_with_the_fields_it_has(tmp_path):
    path = write_jsonl(tmp_path / "law.jsonl", [{"query": "q", "choices": ["a", "b"], "gold": 1}])
    with pytest.raises(ValueError, match=rf"^--choices: {path}:1: no field 'question'; found query, choices, gold; "):
        read_choices([path])


def test_a_folder_without_questions_and_a_second_file_of_a_domain_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^--choices: .*no such file, or a folder without data files"):
        read_choices([tmp_path / "empty"])
    with pytest.raises(ValueError, match="a second file for domain 'law'"):
        read_choices(
            [write_jsonl(tmp_path / "law.jsonl", [record()]), write_jsonl(tmp_path / "x" / "law.jsonl", [record()])]
        )


def test_only_the_text_of_the_option_bears_loss():
    choices = encoded({"law": questions_of(("what is seven", ("the answer", "sky"), 1))})
    texts = []
    for index in range(2):
        input_ids, is_loss = choices.options[index]
        texts.append(tiny_tokenizer().decode(input_ids[is_loss].tolist()))
    assert texts == ["the answer<|im_end|>", "sky<|im_end|>"]  # no special token of this tokenizer
    built_in = encode_choices(
        {"law": questions_of(("what is seven", ("the answer", "sky"), 1))}, tokenizer=tiny_tokenizer(),
        template=tiny_tokenizer().chat_template, row_tokens=64,
    )  # fmt: skip
    input_ids, is_loss = built_in.options[1]
    assert tiny_tokenizer().decode(input_ids[is_loss].tolist()) == "sky"
    assert choices.num_bytes_C.tolist() == [10, 3]


def test_the_option_with_the_lowest_loss_per_byte_wins_each_question():
    choices = encoded(
        {
            "law": questions_of(("q", ("ab", "abcd"), 1), ("q", ("ab", "cd", "efgh"), 0)),
            "art": questions_of(("q", ("é", "e"), 0)),
        }
    )
    assert choices.num_bytes_C.tolist() == [2, 4, 2, 2, 4, 2, 1]
    loss_sum_C = np.array([3.0, 4.0, 1.0, 3.0, 4.0, 3.0, 1.0])  # per byte: 1.5 1.0 | 0.5 1.5 1.0 | 1.5 1.0
    assert choices.is_right(loss_sum_C).tolist() == [True, True, False]
    assert choices.domain_id_Q.tolist() == [0, 0, 1]


def test_a_question_too_long_for_a_row_keeps_its_end_and_its_option():
    choices = encoded({"law": questions_of(("what is the colour " * 30, ("the sky", "court"), 0))}, row_tokens=24)
    input_ids, is_loss = choices.options[0]
    assert len(input_ids) == 24
    assert not is_loss[0]
    assert "the sky" in tiny_tokenizer().decode(input_ids[is_loss].tolist())


@pytest.mark.parametrize("option", ["the sky is the colour of the court " * 5, "the sky"])
def test_an_option_that_would_be_truncated_is_refused_and_quoted(option):
    questions = {"law": questions_of(("q", (option, "court"), 0))}
    own_tokens = len(tiny_tokenizer().encode(f"{option}<|im_end|>"))
    with pytest.raises(
        ValueError, match=rf"^--choices: law: option '{option[:40]}' has .*data\.row_tokens={own_tokens}"
    ):
        encoded(questions, row_tokens=own_tokens)


def test_the_options_of_a_question_are_found_by_its_number():
    choices = encoded(
        {
            "law": questions_of(("q", ("a", "b"), 0)),
            "art": questions_of(("q", ("a", "b", "c"), 1), ("q", ("a", "b"), 0)),
        }
    )
    assert [choices.options_of(question) for question in range(3)] == [range(2), range(2, 5), range(5, 7)]
