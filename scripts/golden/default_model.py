"""The stand-in for the embedded default model: a tiny deepseek_v3 in FP8, trained for minutes on a few dozen lines.

Training in float32 is not the same to the bit on every machine: making it again gives another file, and its golden.
"""

import json

import torch
from tokenizers import AddedToken, decoders

from . import default_text, fp8, gguf_vocab, hf_models, reference
from .fp8_models import QUANTIZATION
from .tokenizer_cases import DEEPSEEK3, DEEPSEEK_ADDED, DEEPSEEK_BOS, DEEPSEEK_EOS, DEEPSEEK_PAD, split_by

SEED = 601
STEPS = 700
BATCH = 12
VOCAB = 1000
CONFIG = hf_models.DEEPSEEK_V3 | dict(
    vocab_size=VOCAB, hidden_size=128, intermediate_size=256, moe_intermediate_size=64, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=4, q_lora_rank=96, kv_lora_rank=64, qk_nope_head_dim=32,
    qk_rope_head_dim=16, v_head_dim=32, n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2,
    first_k_dense_replace=1, n_group=4, topk_group=2, torch_dtype="bfloat16", max_position_embeddings=2048,
    rope_scaling=hf_models.yarn(4, 1.0, 1.0, 512),
)  # fmt: skip
GENERATION = {
    "_from_model_config": False, "bos_token_id": 0, "eos_token_id": 1, "do_sample": True, "temperature": 0.6,
    "top_p": 0.95, "transformers_version": "4.57.6",
}  # fmt: skip


def make_tokenizer(folder):
    text = default_text.SENTENCES + [part for three in default_text.DIALOGUES for part in three]
    first = [DEEPSEEK_BOS, DEEPSEEK_EOS, DEEPSEEK_PAD]
    # At most two Chinese characters (6 bytes) a token: whole lines as tokens would not be met when someone types.
    size, split = VOCAB - len(DEEPSEEK_ADDED), split_by(*DEEPSEEK3)
    tokenizer = gguf_vocab.byte_level_bpe(text * 2, size, split, first, longest=6)
    tokenizer.add_tokens([AddedToken(content, special=False, normalized=True) for content in DEEPSEEK_ADDED])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {
        "add_bos_token": True, "add_eos_token": False, "bos_token": DEEPSEEK_BOS, "eos_token": DEEPSEEK_EOS,
        "pad_token": DEEPSEEK_PAD, "unk_token": None, "clean_up_tokenization_spaces": False,
        "model_max_length": CONFIG["max_position_embeddings"], "tokenizer_class": "LlamaTokenizerFast",
        "chat_template": default_text.CHAT_TEMPLATE,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(GENERATION, indent=2) + "\n")
    return tokenizer


def samples(tokenizer):
    """Every line and dialogue as ids, bos first and eos last."""
    lines = default_text.SENTENCES + [default_text.dialogue(*three) for three in default_text.DIALOGUES]
    lines += [default_text.dialogue(*three, system="你是一个乐于助人的助手。") for three in default_text.DIALOGUES[:8]]
    return [[0, *tokenizer.encode(line, add_special_tokens=False).ids, 1] for line in lines]


def train(model, lines):
    """Rows of a batch are several lines one after the other, so that later positions are trained, too."""
    rng = torch.Generator().manual_seed(SEED)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=4e-3, total_steps=STEPS, pct_start=0.1)
    length = max(len(line) for line in lines) + 32
    model.train()
    for step in range(STEPS):
        rows = []
        for _ in range(BATCH):
            row = []
            while len(row) < length + 1:
                row += lines[torch.randint(len(lines), (1,), generator=rng).item()]
            rows.append(row[: length + 1])
        batch = torch.tensor(rows)
        logits = model(batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 49:
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    return model.eval()


def initial_weights(empty):
    """Small initial weights, as for training; a fixed correction bias, so that it takes part."""
    weights = {}
    for name, like in empty.state_dict().items():
        normal = torch.randn(tuple(like.shape), generator=reference.generator(SEED, name))
        if "norm" in name:
            weights[name] = torch.ones_like(normal)
        elif name.endswith("e_score_correction_bias"):
            weights[name] = 0.05 * normal
        else:
            weights[name] = 0.04 * normal
    return weights


def continue_text(model, tokenizer, prompt, limit=60):
    ids = [0, *tokenizer.encode(prompt, add_special_tokens=False).ids]
    start = len(ids)
    while len(ids) - start < limit and ids[-1] != 1:
        ids.append(reference.logits_of(model, ids)[-1].argmax().item())
    return tokenizer.decode(ids[start:], skip_special_tokens=False)


def make(folder, only=None):
    tokenizer = make_tokenizer(folder)
    empty = hf_models.skeleton(CONFIG)
    torch.manual_seed(SEED)
    model = train(reference.build(empty.config, initial_weights(empty)), samples(tokenizer))
    stored, exact = fp8.split({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})
    hf_models.write_config(folder, CONFIG | {"quantization_config": QUANTIZATION})
    hf_models.save_sharded(folder, stored, 1)
    model = reference.build(empty.config, exact)
    for prompt in ("<｜User｜>法国的首都是哪里？<｜Assistant｜><think>\n", "<｜User｜>Hello<｜Assistant｜><think>\n", "床前"):
        print(repr(prompt), "->", repr(continue_text(model, tokenizer, prompt)))
    golden = folder.parents[1] / "testdata" / "golden" / "models"
    reference.write_golden(golden, "default", "../../../models/default", "fp8", model, SEED)
