"""Reference scores of a real model that is not committed: SmolLM2-135M-Instruct, GGUF Q4_1 (fetch_smollm2.sh)."""

import json

import gguf
import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from . import gguf_models, hf_models, reference
from .tokenizer_cases import CACHE, gguf_tokenizer

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXTS = [
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "Once upon a time, in a small village by the river, there lived an old man who",
    "你好，世界！今天的天气很好，我们去河边走走。",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n",
]
QUESTIONS = ["What is the capital of France?", "Write one short sentence about the sea.", "法国的首都是哪里？"]
HF_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def settings_of(fields):
    key = lambda name: fields[f"llama.{name}"].contents()
    return hf_models.LLAMA | dict(
        vocab_size=len(fields["tokenizer.ggml.tokens"].contents()),
        hidden_size=key("embedding_length"),
        intermediate_size=key("feed_forward_length"),
        num_hidden_layers=key("block_count"),
        num_attention_heads=key("attention.head_count"),
        num_key_value_heads=key("attention.head_count_kv"),
        rms_norm_eps=key("attention.layer_norm_rms_epsilon"),
        rope_theta=key("rope.freq_base"),
        max_position_embeddings=key("context_length"),
        tie_word_embeddings=True,
    )


def hf_name(name):
    whole = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if name in whole:
        return whole[name]
    _, layer, part, suffix = name.split(".")
    return f"model.layers.{layer}.{HF_NAMES[part]}.{suffix}"


def load(path):
    """The model with the file's dequantised values."""
    reader = gguf.GGUFReader(path)
    settings, weights, kinds = settings_of(reader.fields), {}, {}
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        for part, heads in (("attn_q", "num_attention_heads"), ("attn_k", "num_key_value_heads")):
            if part + "." in tensor.name:
                values = gguf_models.unpermute(values, settings[heads])
        weights[hf_name(tensor.name)] = torch.from_numpy(np.ascontiguousarray(values))
        kinds[tensor.tensor_type.name] = kinds.get(tensor.tensor_type.name, 0) + 1
    print(f"{path.name}: {kinds}")
    return reference.build(hf_models.skeleton(settings).config, weights), reader.fields


def make(root, only=None):
    path = CACHE / "smollm2" / FILE
    if not path.exists():
        return print(f"smollm2: skipped, {path} is absent (scripts/fetch_smollm2.sh)")
    model, fields = load(path)
    tokenizer = gguf_tokenizer(path)
    template = fields["tokenizer.chat_template"].contents()
    chat = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template)
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    prompts = [{"text": text} | reference.score(model, encode(text)) for text in TEXTS]
    greedy = []
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        text = chat.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        run = reference.greedy(model, encode(text))
        run["continuation_text"] = tokenizer.decode(run["continuation"], skip_special_tokens=False)
        greedy.append({"question": question} | run)
        print(repr(question), "->", repr(run["continuation_text"]))
    golden = {
        "needs": f".cache/smollm2/{FILE}",
        "model": f"../../../.cache/smollm2/{FILE}",
        "weights": "q4_1",
        "int8_activation_noise": round(reference.int8_noise(model, prompts[0]["token_ids"]), 5),
        "prompts": prompts,
        "greedy": greedy,
    }
    (root / "smollm2.golden.json").write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n")
    print("int8 noise", golden["int8_activation_noise"])
