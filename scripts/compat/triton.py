#!/usr/bin/env python3
"""The KServe v2 protocol as NVIDIA Triton's own client speaks it, against a running server.

    pip install 'tritonclient[grpc]'
    scripts/compat/triton.py --grpc 127.0.0.1:50051

Exits 0 if all is as it should be; otherwise names what is not.
"""

import argparse
import queue
import sys

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

TIMEOUT_S = 120  # of a busy machine
PROMPT = "春天"


def tensor(name, values, datatype, shape=None):
    dtypes = {"BYTES": np.object_, "BOOL": bool, "INT32": np.int32, "FP32": np.float32, "UINT64": np.uint64}
    if datatype == "BYTES":
        values = [value.encode() for value in values]
    array = np.array(values, dtype=dtypes[datatype]).reshape(shape or [len(values)])
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def prompt(*texts, max_tokens=24, shape=None):
    """Tensors of a greedy request."""
    return [
        tensor("text_input", texts, "BYTES", shape),
        tensor("max_tokens", [max_tokens], "INT32"),
        tensor("temperature", [0.0], "FP32"),
    ]


def texts(result, name="text_output"):
    return [value.decode() for value in result.as_numpy(name).reshape(-1)]


def expect(what, got, wanted):
    if got != wanted:
        sys.exit(f"FAIL {what}: {got!r} is not {wanted!r}")
    print(f"ok   {what}")


def refused(what, call, part):
    try:
        call()
    except InferenceServerException as error:
        expect(what, part in error.message(), True)
    else:
        sys.exit(f"FAIL {what}: not refused")


class Stream:
    """Responses of one stream, by request."""

    def __init__(self, client):
        self.client = client
        self.responses = queue.Queue()
        client.start_stream(callback=lambda result, error: self.responses.put((result, error)))

    def send(self, model, request_id, inputs, **options):
        self.client.async_stream_infer(model, inputs, request_id=request_id, **options)

    def until_final(self, count):
        """(id, text of the piece) of each response until `count` requests have ended; errors by themselves."""
        pieces, errors = [], []
        while count:
            result, error = self.responses.get(timeout=TIMEOUT_S)
            if error is not None:
                errors.append(error.message())
                count -= 1
                continue
            response = result.get_response()
            pieces.append((response.id, texts(result)[0]))
            count -= response.parameters["triton_final_response"].bool_param
        return pieces, errors


def check_metadata(client, model):
    expect("is_server_live", client.is_server_live(), True)
    expect("is_server_ready", client.is_server_ready(), True)
    expect("is_model_ready", client.is_model_ready(model), True)
    expect("is_model_ready of another model", client.is_model_ready("no such model"), False)
    expect("server name", client.get_server_metadata().name, "lingqu")
    metadata = client.get_model_metadata(model)
    inputs = {one.name: one.datatype for one in metadata.inputs}
    expect("text_input", inputs.get("text_input"), "BYTES")
    expect("stream", inputs.get("stream"), "BOOL")
    expect("text_output", {one.name: one.datatype for one in metadata.outputs}.get("text_output"), "BYTES")
    config = client.get_model_config(model).config
    expect("decoupled", config.model_transaction_policy.decoupled, True)
    expect("one input is needed", [one.name for one in config.input if not one.optional], ["text_input"])
    refused("metadata of another model", lambda: client.get_model_metadata("no such model"), "no such model")


def check_infer(client, model):
    """Returns the answer to PROMPT."""
    result = client.infer(model, prompt(PROMPT), request_id="r1", client_timeout=TIMEOUT_S)
    answer = texts(result)[0]
    print(f"     {PROMPT!r} -> {answer!r}")
    expect("an answer", len(answer) > 0, True)
    expect("its id", result.get_response().id, "r1")
    expect("finish_reason", texts(result, "finish_reason")[0] in ("stop", "length"), True)
    expect("num_output_tokens", 0 < int(result.as_numpy("num_output_tokens").reshape(-1)[0]) <= 24, True)
    expect("the same again", texts(client.infer(model, prompt(PROMPT)))[0], answer)
    batched = [tensor("text_input", [PROMPT], "BYTES", [1, 1]), tensor("max_tokens", [24], "INT32", [1, 1])]
    batched.append(tensor("temperature", [0.0], "FP32", [1, 1]))
    result = client.infer(model, batched)
    expect("shape [1, 1]", (texts(result)[0], list(result.as_numpy("text_output").shape)), (answer, [1, 1]))
    two = texts(client.infer(model, prompt(PROMPT, "大江", shape=[2, 1])))
    expect("two prompts", two, [answer, texts(client.infer(model, prompt("大江")))[0]])
    only = [triton.InferRequestedOutput("text_output")]
    result = client.infer(model, prompt(PROMPT), outputs=only)
    expect("only what is asked for", [one.name for one in result.get_response().outputs], ["text_output"])
    parameters = {"max_tokens": 24, "temperature": 0.0}
    result = client.infer(model, [tensor("text_input", [PROMPT], "BYTES")], parameters=parameters)
    expect("request parameters", texts(result)[0], answer)
    sampling = '{"temperature": "0", "max_tokens": "24"}'
    vllm = [tensor("text_input", [PROMPT], "BYTES"), tensor("sampling_parameters", [sampling], "BYTES")]
    expect("sampling_parameters", texts(client.infer(model, vllm))[0], answer)
    stopped = prompt(PROMPT) + [tensor("stop_words", [answer[1]], "BYTES", [1, 1])]
    expect("stop_words", texts(client.infer(model, stopped))[0], answer[: answer.index(answer[1])])
    wrong = prompt(PROMPT) + [tensor("top_p", [7.0], "FP32")]
    refused("a wrong tensor is named", lambda: client.infer(model, wrong), "top_p: ")
    expect("statistics", client.get_inference_statistics(model).model_stats[0].inference_count > 0, True)
    return answer


def check_stream(client, model, answer):
    stream = Stream(client)
    streaming = [tensor("stream", [True], "BOOL")]
    stream.send(model, "s1", prompt(PROMPT) + streaming, enable_empty_final_response=True)
    pieces, errors = stream.until_final(1)
    expect("no error", errors, [])
    expect("in pieces", len(pieces) > 3, True)
    expect("put together", "".join(text for _, text in pieces), answer)
    stream.send(model, "whole", prompt(PROMPT))
    expect("at once on a stream", stream.until_final(1), ([("whole", answer)], []))
    names = [f"c{index}" for index in range(4)]
    for name in names:
        stream.send(model, name, prompt(PROMPT) + streaming)
    pieces, errors = stream.until_final(len(names))
    expect("no error", errors, [])
    for name in names:
        expect(f"{name} of four at once", "".join(text for one, text in pieces if one == name), answer)
    stream.send(model, "bad", prompt(PROMPT) + [tensor("top_p", [7.0], "FP32")])
    pieces, errors = stream.until_final(1)
    expect("an error on the stream", (pieces, len(errors), "top_p: " in errors[0]), ([], 1, True))
    stream.send(model, "after", prompt(PROMPT))
    expect("the stream goes on", stream.until_final(1), ([("after", answer)], []))
    client.stop_stream()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grpc", default="127.0.0.1:50051", help="address of the gRPC port")
    parser.add_argument("--http", help="not used here")
    parser.add_argument("--model", help="name of the model; default: the one that is served")
    arguments = parser.parse_args()
    with triton.InferenceServerClient(arguments.grpc) as client:
        model = arguments.model or client.get_model_repository_index().models[0].name
        print(f"model {model}")
        check_metadata(client, model)
        check_stream(client, model, check_infer(client, model))
    print("all well")


if __name__ == "__main__":
    main()
