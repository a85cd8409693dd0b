"""Writes jinja.json: small templates and what transformers 4.57.6 (Jinja2 3.1.6) renders them to.

    pip install transformers==4.57.6 jinja2==3.1.6 && python make_jinja.py
"""

import json
from datetime import datetime
from pathlib import Path
from unittest import mock

from transformers.utils import chat_template_utils

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": '1<2 & 你好\n"q"'},
    {"role": "assistant", "content": "ok"},
    {"role": "user", "content": "bye"},
]
CONTEXT = {
    "add_generation_prompt": True,
    "bos_token": "<s>",
    "documents": None,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"z": 1, "a": "<&>"}}}],
    "data": {"b": [1, 2.5, True, None, "é\"'\n\\"], "a": {}, "empty": []},
    "enable": False,
}
NOW = datetime(2024, 7, 26)

SOURCES = [
    "{{ bos_token }}{{ eos_token }}|{{ missing }}|",
    "{% for m in messages %}{{ m.role[0] }}{% if loop.last %}.{% endif %}{% endfor %}",
    "{%- for m in messages[::-1] -%} {{ loop.index0 ~ m['role'] }} {%- endfor -%} x",
    "{% if true %}\n  a\n  {% endif %}\nb\n",
    "  {% set x = 1 %}\n  {{ x }}\n",
    "a\n  {# note #}\nb\n\n",
    "{{ data | tojson }}",
    "{{ {'b': [1, {}], 'a': ''} | tojson(indent=2) }}",
    "{{ data | tojson(sort_keys=true, separators=(',', ':'), ensure_ascii=true) }}",
    "{{ tools[0] | tojson }}",
    "{{ tools | tojson(indent=4) }}",
    "{{ data }}",
    "{{ true }} {{ none }} {{ 1.0 }} {{ 1e20 }} {{ 0.00001 }} {{ 123456.789 }} {{ (1,) }} {{ [] }} {{ {} }}",
    "{{ enable }} {{ enable is defined and not enable }}",
    "{{ 'a' ~ 1 ~ none ~ true ~ missing }}",
    "{{ [1, 2] + [3] }} {{ 1 + 2.5 }} {{ (1, 2) + (3,) }} {{ 7 * messages | length }}",
    "{% set ns = namespace(s='') %}{% for m in messages %}{% set ns.s = ns.s + m.role + ',' %}{% endfor %}{{ ns.s }}",
    "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i > 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{{ 'x</think>y </think> z'.split('</think>')[-1].strip() }}",
    "{{ ' a b '.lstrip() ~ '|' ~ 'aXbX'.replace('X', '--') ~ '|' ~ 'abc'.startswith(('x', 'a')) }}",
    "{{ 'aXbXc'.replace('X', '', 1) }} {{ 'a,b,c'.split(',', 1) }} {{ 'x'.join(['1', '2']) }} {{ 'ab'.removeprefix('a') }}",
    "{{ 'tool_calls' in messages[0] }} {{ 'role' in messages[0] }} {{ 'Be' in messages[0].content }} {{ 'x' not in 'abc' }}",
    "{{ messages | length }} {{ messages | map(attribute='role') | join('/') }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "{{ messages | rejectattr('role', 'eq', 'user') | map(attribute='content') | list }}",
    "{{ (messages | last).content | trim | upper }} {{ messages[-1]['content'] }} {{ (messages | first).role | capitalize }}",
    "{{ strftime_now('%d %b %Y %A %H:%M') }}",
    "{% macro f(a, b='!') %}{{ a }}{{ b }}{% endmacro %}{{ f('x') + f('y', b='?') }}",
    "{% set x %}a{{ 1 }}{% endset %}{{ x ~ x }}",
    "{% for k, v in {'b': 1, 'a': 2}.items() %}{{ k }}{{ v }}{% endfor %}{{ {'q': 1}.keys() | list }}",
    "{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %}",
    "{%- generation -%} g {% endgeneration %}|{%generation%}\nh{%- endgeneration +%}\n.",
    "{{ 'a\n\nb' | indent(2) }}|{{ 'a\n\nb' | indent(2, true, true) }}|{{ 'a\nb' | indent(width='> ') }}",
    "{{ messages[0].name is defined }} {{ messages[0].get('name', 'n') }} {{ messages[0].content is string }}",
    "{{ messages is iterable and messages is not string }} {{ data is mapping }} {{ 1 is number }} {{ none is none }}",
    "{{ not messages[7] is defined }} {{ messages[7] is none }}",
    "{{ {'a': 1} == {'a': 1} }} {{ [1] != [1, 2] }} {{ 2 in [1, 2] }} {{ 'a' < 'b' }} {{ {'a': 1} in [{'a': 1}] }}",
    "{{ 'abc'[1:] }} {{ messages[1:] | length }} {{ 'abc'[-1] }} {{ [1, 2, 3][:-1] }}",
    "{{ 7 // 2 }} {{ 7 % 3 }} {{ -7 // 2 }} {{ 6 / 3 }} {{ 2 ** 5 }} {{ -3 | abs }} {{ '12' | int + 1 }}",
    "{{ missing | default('d') }} {{ '' | default('d', true) }} {{ none | default('d') }}",
    "{{ 'yes' if enable else 'no' }}{{ 'only' if enable }}",
    "{% if tools is defined and tools %}T{% endif %}{% if documents is none %}N{% endif %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ loop.first }}{% else %}none{% endfor %}",
    "{{ 'Ab c'.title() }} {{ 'Ab'.lower() }} {{ 'ab\ncd'.splitlines() }} {{ '  x '.rstrip() }}| {{ 'xxaxx'.strip('x') }}",
    "{{ 'a' | string + 'b' }} {{ 3 | string + 'b' }} {{ 'it''s' }} {{ \"it's\" }} {{ ['it\\'s'] }}",
    "{{ [3, 1] | reverse | list }} {{ 'a-b' | replace('-', '+') }} {{ '<&>' | e }} {{ '<&>' | safe }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% with c = 3 %}{{ c }}{% endwith %}",
    "{{- ' x ' -}} \n y {#- c -#} z",
    "{% raw %}{{ no }}{% endraw %}",
]


class Clock(datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def main():
    rows = []
    with mock.patch.object(chat_template_utils, "datetime", Clock):
        for source in SOURCES:
            template = chat_template_utils._compile_jinja_template(source)
            rows.append({"source": source, "rendered": template.render(messages=MESSAGES, **CONTEXT)})
    out = {"now_unix_s": 1721952000, "messages": MESSAGES, "context": CONTEXT, "rows": rows}
    text = json.dumps(out, ensure_ascii=False, indent=1) + "\n"
    Path(__file__).with_name("jinja.json").write_text(text, encoding="utf-8")


main()
