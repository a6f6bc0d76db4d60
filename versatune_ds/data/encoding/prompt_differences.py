"""The ways in which a training text and the prompt of generation can differ, their effects, and what to do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptDifference:
    """One difference, with an excerpt of both texts around the place."""

    kind: str
    """A key of `PROMPT_DIFFERENCES`."""
    trained: str = ""
    prompt: str = ""
    detail: str = ""
    """Why the template refuses, or what is written as text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferenceWords:
    """A difference in words."""

    found: str
    effect: str
    todo: str


_OWN_TEMPLATE = "give data.chat_template=FILE with one"

PROMPT_DIFFERENCES = {
    "refused": DifferenceWords(
        found="the chat template refuses the turns before an answer",
        effect="no prompt can be rendered, so the model cannot be used as it was trained",
        todo=f"{_OWN_TEMPLATE} that renders them with add_generation_prompt=True",
    ),
    "opened_thinking": DifferenceWords(
        found="the prompt opens a thinking block, the training text has none in this place",
        effect="the model writes its answer inside a block that it never learned to close",
        todo="give the rows their reasoning (reasoning_content) and data.chat_template=FILE with a template that "
        "prints it, or one whose prompt opens no block",
    ),
    "closed_thinking": DifferenceWords(
        found="the prompt contains a closed thinking block, the training text has none in this place",
        effect="the model answers behind text that it was not trained behind",
        todo=f"{_OWN_TEMPLATE} that prints the block in the answer too, or not in the prompt",
    ),
    "text": DifferenceWords(
        found="the prompt is not the beginning of the training text",
        effect="the model answers behind text that it was not trained behind",
        todo=f"{_OWN_TEMPLATE} that renders the turns before an answer alike with and without it",
    ),
    "tokens": DifferenceWords(
        found="the tokens of the prompt's end are not those of the training text, where they are joined with the "
        "answer's first ones",
        effect="the model answers behind tokens that it was not trained behind",
        todo=f"{_OWN_TEMPLATE} whose prompt ends in a token of its own and without white space, or remove white space "
        "at the beginning of answers",
    ),
    "loss_late": DifferenceWords(
        found="no loss falls on the first token behind the prompt",
        effect="generation must write tokens that were not learned",
        todo="put them inside the template's {% generation %} marks, or into its generation prompt",
    ),
    "loss_early": DifferenceWords(
        found="the loss starts before the end of the prompt",
        effect="the model learns to write a part of the prompt itself",
        todo="leave it out of the template's {% generation %} marks",
    ),
    "start_twice": DifferenceWords(
        found="the training text begins with two start tokens",
        effect="no text that the model has seen begins so",
        todo="remove one from the chat template",
    ),
    "start_missing": DifferenceWords(
        found="the chat template prints no start token, and the tokenizer puts one before plain text",
        effect="the base model has hardly seen text without it",
        todo=f"{_OWN_TEMPLATE} that begins with {{{{ bos_token }}}}",
    ),
    "end_not_trained": DifferenceWords(
        found="no special token bears loss at the end of an answer",
        effect="the model does not learn to stop",
        todo=f"{_OWN_TEMPLATE} that ends answers with the end-of-turn token, inside its {{% generation %}} marks if it "
        "has such",
    ),
    "written_as_text": DifferenceWords(
        found="the chat template does not print all parts of a conversation in their form or place, so training "
        "writes them as text",
        effect="a prompt rendered from the same messages lacks them, has them elsewhere or is refused",
        todo="write them into the messages in the same way when generating (`versatune check --render` shows how), or "
        f"{_OWN_TEMPLATE} that prints them",
    ),
}
