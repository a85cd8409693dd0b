"""Writes checkpoint.pt as a Hugging Face folder in DeepSeek's FP8 release format: what models/default holds.

Linear weights are e4m3 with one f32 `weight_scale_inv` for each 128 x 128 block; embedding, head, norms, router and the
prediction layer's joining matrix are bf16, the router's bias f32, as in the release. One thing is left out: the release
repeats embedding and head in the prediction layer (`embed_tokens`, `shared_head.head`), here it shares the model's own.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from model import Config, Model

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from golden import fp8  # noqa: E402  beside this folder

# Kept whole by the release: everything that is not a linear layer of attention, MLP or experts.
WHOLE = ("embed_tokens", "lm_head", "norm", "mlp.gate.", "eh_proj")
CHAT_TEMPLATE = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {{- message['content'] }}
    {%- elif message['role'] == 'user' %}
        {{- '<｜User｜>' + message['content'] }}
    {%- elif message['role'] == 'assistant' %}
        {{- '<｜Assistant｜>' + message['content'] + eos_token }}
    {%- else %}
        {{- raise_exception('unknown role: ' + message['role']) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<｜Assistant｜>' }}
{%- endif %}"""


def stored(tensors):
    out = {}
    for name, tensor in tensors.items():
        if name.endswith("e_score_correction_bias"):
            out[name] = tensor
        elif any(part in name for part in WHOLE):
            out[name] = tensor.to(torch.bfloat16)
        else:
            out[name], out[f"{name}_scale_inv"] = fp8.quantise(tensor)
    return out


def config(c):
    return c.as_dict() | {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_act": "silu",
        "attention_bias": False, "attention_dropout": 0.0, "num_key_value_heads": c.num_attention_heads,
        "moe_layer_freq": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True,
        "tie_word_embeddings": False, "use_cache": True, "max_position_embeddings": 1024, "ep_size": 1,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "initializer_range": 0.02, "torch_dtype": "bfloat16",
        "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                                "weight_block_size": [fp8.BLOCK, fp8.BLOCK]},
    }  # fmt: skip


GENERATION = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "do_sample": True, "temperature": 0.6, "top_p": 0.9,
              "repetition_penalty": 1.1}
TOKENIZER = {
    "add_bos_token": True, "add_eos_token": False, "bos_token": "<｜begin▁of▁sentence｜>",
    "eos_token": "<｜end▁of▁sentence｜>", "pad_token": "<｜▁pad▁｜>", "unk_token": None,
    "clean_up_tokenization_spaces": False, "model_max_length": 1024, "tokenizer_class": "LlamaTokenizerFast",
    "chat_template": CHAT_TEMPLATE,
}  # fmt: skip


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder of train.py")
    parser.add_argument("out", type=Path, help="models/default")
    args = parser.parse_args()
    saved = torch.load(args.folder / "checkpoint.pt", map_location="cpu")
    model = Model(Config())
    model.load_state_dict(saved["model"])
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(stored(model.release_tensors()), args.out / "model.safetensors", metadata={"format": "pt"})
    write_json(args.out / "config.json", config(model.c))
    write_json(args.out / "generation_config.json", GENERATION)
    write_json(args.out / "tokenizer_config.json", TOKENIZER)
    tokenizer = json.loads((args.folder / "tokenizer.json").read_text(encoding="utf-8"))
    for token in tokenizer["added_tokens"]:
        # As in DeepSeek's: the roles are known words, but not special.
        token["special"] = token["content"] not in ("<｜User｜>", "<｜Assistant｜>")
    (args.out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    shutil.copy(args.folder / "loss.csv", args.out / "loss.csv")
    size = sum(f.stat().st_size for f in args.out.iterdir())
    print(f"{args.out}: {size / 1e6:.2f} MB, step {saved['step']}")


if __name__ == "__main__":
    main()
