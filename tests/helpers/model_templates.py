"""Small chat templates that behave like those of known models."""

from __future__ import annotations

# The system text is in the last user turn, and only if that ends the conversation; ids have nine characters.
MISTRAL = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace(last_user=-1) %}
{%- for m in loop_messages %}{% if m['role'] == 'user' %}{% set ns.last_user = loop.index0 %}{% endif %}{% endfor %}
{{- bos_token }}
{%- for m in loop_messages %}
    {%- if m['role'] == 'user' %}
        {%- if tools and loop.index0 == ns.last_user %}
            {{- '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- '[INST]' + system_message + '\\n\\n' + m['content'] + '[/INST]' }}
        {%- else %}
            {{- '[INST]' + m['content'] + '[/INST]' }}
        {%- endif %}
    {%- elif m['tool_calls'] is defined and m['tool_calls'] %}
        {{- '[TOOL_CALLS][' }}
        {%- for call in m['tool_calls'] %}
            {%- if call['id'] is not defined or call['id'] | length != 9 %}
                {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
            {%- endif %}
            {{- (call['function'] | tojson)[:-1] + ', "id": "' + call['id'] + '"}' }}
        {%- endfor %}
        {{- ']' + eos_token }}
    {%- elif m['role'] == 'assistant' %}
        {{- ' ' + m['content'] | trim + eos_token }}
    {%- elif m['role'] == 'tool' %}
        {%- if m['tool_call_id'] is not defined or m['tool_call_id'] | length != 9 %}
            {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
        {%- endif %}
        {{- '[TOOL_RESULTS]{"content": ' + m['content'] + ', "call_id": "' + m['tool_call_id'] + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception('Only user and assistant roles are supported') }}
    {%- endif %}
{%- endfor %}
"""

# Reasoning is printed only after the last user turn.
LAST_REASONING = """\
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{{- '<|im_start|>' + m['role'] + '\\n' }}
{%- if m['role'] == 'assistant' %}
    {%- set answer, thoughts = m['content'], m['reasoning_content'] or '' %}
    {%- if '</think>' in answer %}
        {%- set thoughts = answer.split('</think>')[0].split('<think>')[-1].strip() %}
        {%- set answer = answer.split('</think>')[-1].lstrip() %}
    {%- endif %}
    {%- if loop.index0 > ns.last %}{{ '<think>\\n' + thoughts + '\\n</think>\\n\\n' }}{% endif %}
    {{- answer + '<|im_end|>\\n' }}
{%- else %}
    {{- m['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

# Reasoning is dropped in every turn; calls are printed only with the content None, as JSON text.
NO_REASONING = """\
{{- bos_token }}
{%- for m in messages %}
{%- if m['role'] == 'assistant' and m['content'] is none %}
    {{- '<|assistant|>' }}
    {%- for call in m['tool_calls'] %}
        {{- '[call]' + call['function']['name'] + '\\n' + call['function']['arguments'] + '[/call]' }}
    {%- endfor %}
    {{- eos_token }}
{%- elif m['role'] == 'assistant' %}
    {{- '<|assistant|>' + m['content'].split('</think>')[-1] + eos_token }}
{%- else %}
    {{- '<|' + m['role'] + '|>' + m['content'] }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
"""

# The system turn has today's date if `strftime_now` is defined.
DATED = """\
{%- if strftime_now is defined %}
    {%- set date_string = strftime_now('%d %b %Y') %}
{%- else %}
    {%- set date_string = '26 Jul 2024' %}
{%- endif %}
{{- '<|system|>Today Date: ' + date_string + '\\n' }}
{%- for m in messages %}
{{- '<|' + m['role'] + '|>' + m['content'] + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
"""
