"""Choose the chat template: a given one, the tokenizer's own, or the built-in one.

A template is plain Jinja text. Its digest goes into every manifest, so shards made with another template are not used.
"""

from __future__ import annotations

import hashlib
import logging
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from versatune_ds.log import warn_once
from versatune_ds.paths import nearest_path

_logger = logging.getLogger(__name__)

TEMPLATE_DATE = datetime(2024, 7, 26)
"""The date that `strftime_now` prints: the one that Llama's templates print without a clock."""

_CLOCK = "{%- macro strftime_now(format) %}"

ROLE_MARKERS = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")

BUILT_IN_TEMPLATE = """\
{%- if bos_token %}{{ bos_token }}{% endif %}
{%- if tools %}{{ '<|system|>\\nTools: ' + tools | tojson + '\\n' }}{% endif %}
{%- for message in messages %}
{%- if message['role'] == 'assistant' %}
{{- '<|assistant|>\\n' }}
{%- generation %}
{{- message['content'] or '' }}
{%- for call in message['tool_calls'] or [] %}
{{- '<tool_call>' + call['function'] | tojson + '</tool_call>' }}
{%- endfor %}
{{- eos_token }}
{%- endgeneration %}
{{- '\\n' }}
{%- else %}
{{- '<|' + message['role'] + '|>\\n' + message['content'] + '\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}
"""


class TemplateMismatchError(ValueError):
    """A template cannot render a conversation, or its loss spans cannot be found exactly."""


def choose_template(tokenizer: Any, *, path: Path | None = None) -> str:
    """Return the text of the chat template to render conversations with.

    A template that prints today's date gets a fixed date, because its tokens would change from day to day.

    Args:
        tokenizer: A transformers tokenizer.
        path: Jinja file that takes precedence (`data.chat_template`).

    Raises:
        ValueError: If the file is missing, or a tokenizer without end-of-text token needs the built-in template.
    """
    if path is not None:
        if not path.is_file():
            nearest = nearest_path(path)
            hint = "give a Jinja file" if nearest is None else f"did you mean {str(nearest)!r}?"
            raise ValueError(f"data.chat_template: no such file {path}; {hint}")
        return _repeatable(path.read_text(encoding="utf-8"))
    own = tokenizer.chat_template
    if isinstance(own, dict):  # several named templates: transformers' own choice is `default`
        own = own.get("default")
    if own:
        return _repeatable(own)
    if tokenizer.eos_token is None:
        raise ValueError(
            "data.chat_template: the tokenizer has neither a chat template nor an end-of-text token; give a Jinja file"
        )
    _logger.info("The tokenizer has no chat template; using the built-in one.")
    return BUILT_IN_TEMPLATE


def _repeatable(template: str) -> str:
    """Return a template that renders the same every day; warn if it depends on chance."""
    if re.search(r"\|\s*random\b|\blipsum\s*\(", template):
        warn_once(
            "the chat template draws at random (random, lipsum), so the same data gives other tokens each time it is "
            "prepared; give data.chat_template=FILE with one that does not"
        )
    if not re.search(r"\bstrftime_now\b(?!\s+is\b)", template):
        return template
    warn_once(
        f"the chat template prints today's date (strftime_now); it is always rendered as of {TEMPLATE_DATE:%d %b %Y}, "
        "so that the same data gives the same tokens every day; for another date give data.chat_template=FILE with "
        "the date written in it"
    )
    return _fixed_clock() + template


def has_fixed_date(template: str) -> bool:
    """Return whether a template from `choose_template` prints a date, which is then TEMPLATE_DATE."""
    return template.startswith(_CLOCK)


def _fixed_clock() -> str:
    """Return a Jinja macro `strftime_now(format)` that prints TEMPLATE_DATE; it shadows the function of that name.

    The macro ends with a line end, which Jinja drops after a block, so that the template's own text is unchanged.
    """
    plain = [f"%{letter}" for letter in "aAbBcdDeFgGhHIjklmMnpPrRsSTuUVwWxXyYzZ"]
    codes = [*(f"%-{letter}" for letter in "deHIjmMSy"), *plain]
    filters = "".join(f"|replace('{code}', {TEMPLATE_DATE.strftime(code)!r})" for code in codes)
    return _CLOCK + "{{- format" + filters + "|replace('%%', '%') }}{%- endmacro %}\n"


def template_digest(template: str) -> str:
    """Return a digest of a template's text."""
    return hashlib.blake2b(template.encode(), digest_size=16).hexdigest()
