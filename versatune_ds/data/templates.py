"""Choose the chat template: a given one, the tokenizer's own, or the built-in one.

The one idea: a template is plain Jinja text and travels as such; its digest goes into every manifest, so that shards
made with another template are never taken for these.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

_logger = logging.getLogger(__name__)

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

    Args:
        tokenizer: A transformers tokenizer.
        path: Jinja file that takes precedence (`data.chat_template`).

    Raises:
        ValueError: If the file is missing, or a tokenizer without end-of-text token needs the built-in template.
    """
    if path is not None:
        if not path.is_file():
            raise ValueError(f"data.chat_template: no such file {path}; give a Jinja file")
        return path.read_text(encoding="utf-8")
    own = tokenizer.chat_template
    if isinstance(own, dict):  # several named templates: transformers' own choice is `default`
        own = own.get("default")
    if own:
        return own
    if tokenizer.eos_token is None:
        raise ValueError("data.chat_template: the tokenizer has neither a chat template nor an end-of-text token")
    _logger.info("The tokenizer has no chat template; the built-in one is used.")
    return BUILT_IN_TEMPLATE


def template_digest(template: str) -> str:
    """Return a digest of a template's text."""
    return hashlib.blake2b(template.encode(), digest_size=16).hexdigest()
