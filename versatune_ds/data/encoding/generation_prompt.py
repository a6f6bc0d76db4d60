"""Compare the text that a conversation is trained on with the prompts from which generation would write its answers.

At each answer, generation starts from the chat template's rendering of the turns before it, with a generation prompt.
Training and generation agree where that prompt's tokens are the first tokens of the training text, and the loss starts
right behind them:

    training text   <user>Hi</s><assistant>Hello</s>
    prompt          <user>Hi</s><assistant>                 agree
    prompt          <user>Hi</s><assistant><think>         differ: no answer was trained in this place

Not covered: settings of a template that are given when generating (`enable_thinking=False`, a date, documents).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from versatune_ds.data.encoding.control_tokens import HiddenExample, hide_control_tokens, reveal
from versatune_ds.data.encoding.encode import EncodedExample, encode_rendered
from versatune_ds.data.encoding.forms import Example
from versatune_ds.data.encoding.loss_spans import RenderedExample, render_example
from versatune_ds.data.encoding.prompt_differences import PromptDifference
from versatune_ds.data.encoding.template_abilities import TemplateAbilities, fit_to_template
from versatune_ds.data.encoding.tokenizer import render_conversation, special_ids_of

AS_TEXT = {
    "system_in_question": "the system text",
    "tools_as_text": "the tools",
    "calls_as_text": "the calls",
    "results_as_text": "the tool results",
}
"""What `fit_to_template` writes as text, in words; a prompt rendered from the same messages lacks it or has it
elsewhere."""

_OPENED = re.compile(r"<think>\s*\Z")
_EMPTY = re.compile(r"(<think>\s*)?</think>\s*\Z")
_BEGINS_WITH_EMPTY = re.compile(r"\s*<think>\s*</think>")
_BEFORE, _BEHIND = 24, 40
"""Characters of an excerpt before and behind the place where two texts part."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptComparison:
    """The training text of a conversation, the prompt of its last trained answer, and how they differ."""

    trained: EncodedExample
    prompt_ids: tuple[int, ...]
    """As generation would see it; empty if the template refuses to render it."""
    differences: tuple[PromptDifference, ...]
    """The first of each kind; empty if training and generation agree."""
    adds_empty_thinking: bool
    """The template writes an empty thinking block into the training text of an answer that has no reasoning."""
    has_loss_behind_end: bool
    """White space behind the token that ends an answer bears loss; generation has stopped before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptComparer:
    """Compares conversations with the prompts of their answers, for one tokenizer and template."""

    tokenizer: Any
    template: str
    loss_on: str
    abilities: TemplateAbilities

    def compare(self, example: Example) -> PromptComparison | None:
        """Return a conversation's comparison; None where no answer bears loss.

        Raises:
            TemplateMismatchError: If the conversation cannot be trained on.
        """
        # The training text, and the places of its answers.
        fitted, changes = fit_to_template(example, abilities=self.abilities)
        turns, tools = list(fitted.turns), list(fitted.tools) or None
        control = self.abilities.control
        rendered = render_example(
            turns, tokenizer=self.tokenizer, template=self.template, loss_on=self.loss_on, tools=tools, control=control
        )
        trained = self._encoded(rendered)
        answers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant" and turn.get("loss", True)]
        if not answers or not trained.num_loss_tokens:
            return None
        # The prompt of each answer, the last one last.
        hidden = hide_control_tokens(turns, tools=tools, control=control)
        found, prompt, adds_empty_thinking = [], None, False
        for i in answers:
            try:
                prompt = self._prompt(hidden, num_turns=i)
            except Exception as error:  # a template is code and can raise anything
                found.append(PromptDifference(kind="refused", detail=" ".join(str(error).split())))
                continue
            found += self._differences(prompt, rendered=rendered, trained=trained)
            adds_empty_thinking |= not _has_reasoning(turns[i]) and _adds_empty_thinking(prompt.text, rendered.text)
        found += [*self._of_ends(rendered, trained), *_of_text_forms(changes)]
        first_of_kind: dict[str, PromptDifference] = {}
        for difference in found:
            first_of_kind.setdefault(difference.kind, difference)
        return PromptComparison(
            trained=trained,
            prompt_ids=() if prompt is None else tuple(self._encoded(prompt).input_ids.tolist()),
            differences=tuple(first_of_kind.values()),
            adds_empty_thinking=adds_empty_thinking,
            has_loss_behind_end=self.loss_on == "assistant" and self._last_loss_token(trained) != _last_loss(trained),
        )

    def _encoded(self, rendered: RenderedExample) -> EncodedExample:
        return encode_rendered([rendered], tokenizer=self.tokenizer, control=self.abilities.control)[0]

    def _prompt(self, hidden: HiddenExample, *, num_turns: int) -> RenderedExample:
        """Return what generation sees after some turns."""
        text, _ = render_conversation(
            hidden.messages[:num_turns],
            tokenizer=self.tokenizer,
            template=self.template,
            tools=hidden.tools,
            add_generation_prompt=True,
        )
        revealed, _, as_text = reveal(text, hidden=hidden)
        return RenderedExample(text=revealed, loss_spans=None, as_text=as_text)

    def _differences(
        self, prompt: RenderedExample, *, rendered: RenderedExample, trained: EncodedExample
    ) -> Iterator[PromptDifference]:
        """Yield how the prompt of an answer differs from the training text."""
        if not rendered.text.startswith(prompt.text):
            yield _difference_of_texts(prompt.text, rendered.text)
            return
        ids, is_loss = self._encoded(prompt).input_ids, trained.is_loss
        num_ids = len(ids)
        place = len(prompt.text)
        around = {
            "trained": rendered.text[max(place - _BEFORE, 0) : place + _BEHIND],
            "prompt": prompt.text[-_BEFORE:],
        }
        if not np.array_equal(ids, trained.input_ids[:num_ids]):
            yield PromptDifference(kind="tokens", **around)
        elif num_ids >= len(is_loss) or not is_loss[num_ids]:
            yield PromptDifference(kind="loss_late", **around)
        elif self.loss_on == "assistant" and num_ids and is_loss[num_ids - 1]:
            yield PromptDifference(kind="loss_early", **around)

    def _last_loss_token(self, trained: EncodedExample) -> int | None:
        """Return the place of the last token that bears loss and is more than white space."""
        ids, places = trained.input_ids.tolist(), reversed(np.flatnonzero(trained.is_loss).tolist())
        return next((i for i in places if self.tokenizer.decode([ids[i]]).strip()), None)

    def _of_ends(self, rendered: RenderedExample, trained: EncodedExample) -> Iterator[PromptDifference]:
        """Yield what is wrong with the first tokens of the training text, and with the last one that bears loss."""
        tokenizer, ids = self.tokenizer, trained.input_ids.tolist()
        start, beginning = tokenizer.bos_token_id, rendered.text[:_BEHIND]
        if start is not None and ids[:2] == [start, start]:
            yield PromptDifference(kind="start_twice", trained=beginning)
        elif start is not None and ids[:1] != [start] and adds_start(tokenizer):
            yield PromptDifference(kind="start_missing", trained=beginning, prompt=tokenizer.bos_token)
        last = self._last_loss_token(trained)
        is_ended = last is not None and ids[last] in special_ids_of(tokenizer)
        if self.abilities.closes_turns and not is_ended:
            end = rendered.loss_spans[-1][1] if rendered.loss_spans else len(rendered.text)
            yield PromptDifference(kind="end_not_trained", trained=rendered.text[max(end - _BEFORE, 0) : end])


def _last_loss(trained: EncodedExample) -> int:
    return int(np.flatnonzero(trained.is_loss)[-1])


def _of_text_forms(changes: list[str]) -> Iterator[PromptDifference]:
    """Yield that training writes parts of a conversation as text that a prompt would have in another form."""
    written = [AS_TEXT[change] for change in AS_TEXT if change in changes]
    if written:
        yield PromptDifference(kind="written_as_text", detail=" and ".join(written))


def adds_start(tokenizer: Any) -> bool:
    """Return whether a tokenizer puts its start token before plain text."""
    return tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]


def added_system_text(template: str, *, tokenizer: Any) -> str:
    """Return the text that a template writes before a conversation that has no system turn; '' if none.

    The first question has it before its header, the second one does not. What both have, the header, is left out.
    """
    question, answer = {"role": "user", "content": "question4711"}, {"role": "assistant", "content": "answer5081"}
    second = {"role": "user", "content": "question4712"}
    try:
        text, _ = render_conversation([question, answer, second], tokenizer=tokenizer, template=template)
    except Exception:  # a template is code; one that refuses this is reported for its rows
        return ""
    specials = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    for token in sorted({*specials, *tokenizer.all_special_tokens}, key=len, reverse=True):
        text = text.replace(token, "\0")
    first = text.partition("question4711")[0]
    header = text.partition("answer5081")[2].partition("question4712")[0]
    num_common = next((n for n in range(min(len(first), len(header)), 0, -1) if first[-n:] == header[-n:]), 0)
    before = first[: len(first) - num_common].replace("\0", " ")
    return " ".join(before.split()).removeprefix("system ")


def _difference_of_texts(prompt: str, trained: str) -> PromptDifference:
    """Return how a prompt that is not the beginning of the training text differs from it."""
    place = next((i for i, (a, b) in enumerate(zip(prompt, trained, strict=False)) if a != b), len(trained))
    begin = max(place - _BEFORE, 0)
    kind = "text"
    for name, pattern in (("opened_thinking", _OPENED), ("closed_thinking", _EMPTY)):
        without = pattern.sub("", prompt)
        if without != prompt and trained.startswith(without):
            kind = name
            break
    return PromptDifference(kind=kind, trained=trained[begin : place + _BEHIND], prompt=prompt[begin : place + _BEHIND])


def _adds_empty_thinking(prompt: str, trained: str) -> bool:
    return trained.startswith(prompt) and bool(_BEGINS_WITH_EMPTY.match(trained, len(prompt)))


def _has_reasoning(turn: dict[str, Any]) -> bool:
    return bool(turn.get("reasoning_content")) or "</think>" in (turn["content"] or "")
