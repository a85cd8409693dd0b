"""LoRA adapters saved by PEFT for some of the golden models, and the log-probs that PEFT gives with them.

Needs peft==0.21.2 beside the versions in make_golden.py.
"""

import json
import math

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from . import reference

# name: (base, seed, what of LoraConfig is not its default, stored as)
DEEPSEEK = r".*\.(q_a_proj|q_b_proj|kv_a_proj_with_mqa|o_proj)|.*\.mlp\.(shared_experts\.)?(gate|up|down)_proj"
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "llama-all": ("llama-gqa-bf16", 401, dict(
        r=8, lora_alpha=16, target_modules=LAYERS, rank_pattern={"down_proj": 3}, alpha_pattern={"o_proj": 4}), "bfloat16"),
    "llama-attention": ("llama-gqa-bf16", 402, dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]), "float32"),
    "qwen2-stabilised": ("qwen2-tied-bf16", 403, dict(
        r=4, lora_alpha=3, use_rslora=True, target_modules=LAYERS), "float32"),
    "deepseek-v3": ("deepseek-v3-bf16", 404, dict(r=6, lora_alpha=12, target_modules=DEEPSEEK), "bfloat16"),
}  # fmt: skip
PROMPT_TOKENS = [2, 17, 64]


def fill(model, seed):
    """Factors that move log-probs by tenths."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            normal = torch.randn(parameter.shape, generator=reference.generator(seed, name))
            gain = 1.0 if "lora_A" in name else 0.15
            parameter.data = (normal * (gain / math.sqrt(parameter.shape[1]))).bfloat16().float()


def make_one(root, name):
    base, seed, settings, dtype = ADAPTERS[name]
    base_folder = root.parent / "models" / base
    config = AutoConfig.from_pretrained(base_folder)
    weights = {}
    for file in sorted(base_folder.glob("*.safetensors")):
        weights |= load_file(file)
    model = reference.build(config, weights)
    vocab = config.vocab_size
    draw = lambda n: torch.randint(0, vocab, (n,), generator=reference.generator(seed, f"prompt {n}")).tolist()
    ids = draw(PROMPT_TOKENS[-1])
    plain = torch.log_softmax(reference.logits_of(model, ids), -1)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    fill(adapted, seed)
    folder = root / name
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    file = folder / "adapter_model.safetensors"
    factors = {key: value.to(getattr(torch, dtype)).contiguous() for key, value in load_file(file).items()}
    save_file(factors, file, metadata={"format": "pt"})
    text = json.loads((folder / "adapter_config.json").read_text())
    text["base_model_name_or_path"] = base
    if isinstance(text["target_modules"], list):
        text["target_modules"].sort()
    (folder / "adapter_config.json").write_text(json.dumps(text, indent=2, sort_keys=True) + "\n")
    golden = {"model": f"../models/{base}", "prompts": [reference.score(adapted, draw(n)) for n in PROMPT_TOKENS]}
    (root / f"{name}.golden.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    moved = (torch.log_softmax(reference.logits_of(adapted, ids), -1) - plain).abs().mean()
    print(f"{name}: {len(factors) // 2} matrices changed, log-probs moved by {moved:.3f} on average")


def make(root, only=None):
    for name in ADAPTERS:
        if only is None or name in only:
            make_one(root, name)
