"""Choose the chat template: a given one, the tokenizer's own, or the built-in one.

The one idea: a template is plain Jinja text and travels as such; its digest goes into every manifest, so that shards
made with another template are never taken for these.
"""

from __future__ import annotations

import hashlib
import logging
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from versatune_ds.warn_once import warn_once

_logger = logging.getLogger(__name__)

TEMPLATE_DATE = datetime(2024, 7, 26)
"""What `strftime_now` returns here: the date that Llama's templates print where there is no clock."""

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


def choose_template(tokenizer: Any, *, path: Path | None = None) -> str:
    """Return the chat template text to render conversations with.

    A template that prints today's date is given a fixed one, because its tokens would change from day to day.

    Args:
        tokenizer: A transformers tokenizer.
        path: Jinja file that takes precedence (`data.chat_template`).

    Raises:
        ValueError: If the file is missing, or a tokenizer without end-of-text token needs the built-in template.
    """
    if path is not None:
        if not path.is_file():
            raise ValueError(f"data.chat_template: no such file {path}; give a Jinja file")
        return _repeatable(path.read_text(encoding="utf-8"))
    own = tokenizer.chat_template
    if isinstance(own, dict):  # several named templates: transformers' own choice is `default`
        own = own.get("default")
    if own:
        return _repeatable(own)
    if tokenizer.eos_token is None:
        raise ValueError("data.chat_template: the tokenizer has neither a chat template nor an end-of-text token")
    _logger.info("The tokenizer has no chat template; the built-in one is used.")
    return BUILT_IN_TEMPLATE


def _repeatable(template: str) -> str:
    """Return a template that renders the same on every day; warn of one that depends on chance."""
    if re.search(r"\|\s*random\b|\blipsum\s*\(", template):
        warn_once(
            "the chat template draws at random (random, lipsum), so the same rows give other tokens each time they are "
            "prepared; give data.chat_template=FILE with one that does not"
        )
    if not re.search(r"\bstrftime_now\b(?!\s+is\b)", template):
        return template
    warn_once(
        f"the chat template prints the date of the day (strftime_now); it is rendered as of {TEMPLATE_DATE:%d %b %Y} "
        "always, so that the same rows give the same tokens on every day; for another date give "
        "data.chat_template=FILE with the date written in it"
    )
    return _fixed_clock() + template


def has_fixed_date(template: str) -> bool:
    """Return whether a chosen template prints a date, which is then TEMPLATE_DATE."""
    return template.startswith(_CLOCK)


def _fixed_clock() -> str:
    """Return a Jinja macro `strftime_now(format)` that writes TEMPLATE_DATE; it shadows the function of that name.

    The macro ends with a line end, which Jinja leaves out after a block, so that the template's own text is unchanged.
    """
    plain = [f"%{letter}" for letter in "aAbBcdDeFgGhHIjklmMnpPrRsSTuUVwWxXyYzZ"]
    codes = [*(f"%-{letter}" for letter in "deHIjmMSy"), *plain]
    filters = "".join(f"|replace('{code}', {TEMPLATE_DATE.strftime(code)!r})" for code in codes)
    return _CLOCK + "{{- format" + filters + "|replace('%%', '%') }}{%- endmacro %}\n"


def template_digest(template: str) -> str:
    """Return a digest of a template's text."""
    return hashlib.blake2b(template.encode(), digest_size=16).hexdigest()
