"""The openai client against a running server at LINGQU_HTTP (host:port)."""

import json
import os

import openai

client = openai.OpenAI(base_url=f"http://{os.environ['LINGQU_HTTP']}/v1", api_key="none", max_retries=0)
model = client.models.list().data[0].id
ask = {"model": model, "messages": [{"role": "user", "content": "写一首关于秋天的诗"}], "seed": 2, "max_tokens": 40}


def models():
    assert client.models.retrieve(model).id == model
    try:
        client.models.retrieve("gpt-9")
    except openai.NotFoundError as error:
        assert error.code == "model_not_found", error
    else:
        raise AssertionError("gpt-9 was found")


def chat():
    reply = client.chat.completions.create(**ask)
    text = reply.choices[0].message.content
    assert text and reply.choices[0].finish_reason in ("stop", "length"), reply
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.system_fingerprint.startswith("fp_")

    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[-1].usage == reply.usage and not chunks[-1].choices
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == reply.choices[0].finish_reason

    # With the reported seed the reply comes again.
    unseeded = ask | {"seed": None}
    first = client.chat.completions.create(**unseeded)
    seed = first.choices[0].lingqu["seed"]
    again = client.chat.completions.create(**(ask | {"seed": seed}))
    assert again.choices[0].message.content == first.choices[0].message.content

    with client.chat.completions.stream(**ask) as stream:
        stream.until_done()
        assert stream.current_completion_snapshot.choices[0].message.content == text


def samples():
    reply = client.chat.completions.create(**ask, n=3)
    assert [c.index for c in reply.choices] == [0, 1, 2]
    assert len({c.message.content for c in reply.choices}) == 3


def logprobs():
    reply = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3)
    content = reply.choices[0].logprobs.content
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob
    told = b"".join(bytes(t.bytes or []) for t in content).decode(errors="replace")
    assert reply.choices[0].message.content in told, told


def completions():
    plain = {"model": model, "prompt": "秋天", "seed": 5, "max_tokens": 12}
    reply = client.completions.create(**plain, logprobs=2, echo=True)
    choice = reply.choices[0]
    assert choice.text.startswith("秋天")
    assert len(choice.logprobs.tokens) == reply.usage.total_tokens or choice.finish_reason == "stop"
    streamed = client.completions.create(**plain, stream=True)
    assert "秋天" + "".join(c.choices[0].text for c in streamed) == choice.text
    both = client.completions.create(**(plain | {"prompt": ["秋天", "春天"]}), n=2)
    assert [c.index for c in both.choices] == [0, 1, 2, 3]


def forms():
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["fire", "theft"]}, "urgent": {"type": "boolean"}},
        "required": ["kind", "urgent"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "report", "schema": schema, "strict": True}}
    reply = client.chat.completions.create(**(ask | {"max_tokens": 200}), response_format=form)
    report = json.loads(reply.choices[0].message.content)
    assert report["kind"] in ("fire", "theft") and isinstance(report["urgent"], bool), report
    reply = client.chat.completions.create(**ask, extra_body={"guided_choice": ["好", "不好"]})
    assert reply.choices[0].message.content in ("好", "不好"), reply

    tools = [{"type": "function", "function": {"name": "report", "parameters": schema}}]
    forced = ask | {"max_tokens": 300, "tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    choice = client.chat.completions.create(**forced).choices[0]
    [call] = choice.message.tool_calls
    assert (call.function.name, choice.finish_reason) == ("report", "tool_calls"), choice
    assert json.loads(call.function.arguments)["kind"] in ("fire", "theft"), choice
    with client.chat.completions.stream(**forced) as stream:
        [streamed] = stream.get_final_completion().choices[0].message.tool_calls
    assert (streamed.id, streamed.function.arguments) == (call.id, call.function.arguments)


def errors():
    for wrong, param in [
        ({"top_p": 7}, "top_p"),
        ({"temperature": "hot"}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"max_tokens": -1}, "max_tokens"),
    ]:
        try:
            client.chat.completions.create(**(ask | wrong))
        except openai.BadRequestError as error:
            assert error.param == param, (wrong, error)
        else:
            raise AssertionError(f"{wrong} was taken")


for check in (models, chat, samples, logprobs, completions, forms, errors):
    check()
    print(f"openai client: {check.__name__}: ok")
