"""Scores prompts with transformers (float32, eager attention, one thread) and writes NAME.golden.json."""

import json
import zlib

import torch
from transformers import AutoModelForCausalLM, DynamicCache

PROMPT_TOKENS = [1, 2, 3, 17, 64, 129, 300]
GREEDY_PROMPT_TOKENS = [1, 7, 40]
GREEDY_STEPS = 16
TOP = 4


def generator(seed, name):
    """A generator that depends on the tensor's name, so that adding a tensor does not move the others."""
    return torch.Generator().manual_seed((seed << 32) ^ zlib.crc32(name.encode()))


def build(config, weights):
    """A float32 model with exactly these weights: a missing or unknown name is an error."""
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", torch_dtype=torch.float32).eval()
    weights = {name: tensor.to(torch.float32) for name, tensor in weights.items()}
    missing, unknown = model.load_state_dict(weights, strict=False)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    assert set(missing) <= tied and not unknown, (missing, unknown)
    model.tie_weights()
    return model


@torch.no_grad()
def logits_of(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0].float()  # [tokens, vocab]


@torch.no_grad()
def decode_logits(model, ids):
    """The same logits one token at a time, through the cache."""
    cache, rows = DynamicCache(config=model.config), []
    for position, token in enumerate(ids):
        out = model(
            torch.tensor([[token]]),
            past_key_values=cache,
            use_cache=True,
            cache_position=torch.tensor([position]),
        )
        rows.append(out.logits[0, -1].float())
    return torch.stack(rows)


def score(model, ids):
    logprobs = torch.log_softmax(logits_of(model, ids).double(), dim=-1)  # [tokens, vocab]
    best = logprobs.topk(TOP, dim=-1)
    rows = zip(best.indices.tolist(), best.values.tolist())
    chosen = [None] + [round(logprobs[t - 1, ids[t]].item(), 6) for t in range(1, len(ids))]
    top = [[[i, round(p, 6)] for i, p in zip(*row)] for row in rows]
    return {"token_ids": ids, "logprobs": chosen, "top": top}


def greedy(model, prompt):
    ids, margins = list(prompt), []
    for _ in range(GREEDY_STEPS):
        logprobs = torch.log_softmax(logits_of(model, ids)[-1].double(), dim=-1)
        best = logprobs.topk(2)
        margins.append(round((best.values[0] - best.values[1]).item(), 6))
        ids.append(best.indices[0].item())
    return {"prompt": prompt, "continuation": ids[len(prompt) :], "margins": margins}


def int8_noise(model, ids):
    """Mean |difference| of log-probs when every Linear's input is rounded to int8 in blocks of 32.

    It says what an honest int8 backend may differ by; it is printed, and kept in the golden file for the record.
    """

    def rounded(_, args):
        x = args[0]
        pad = -x.shape[-1] % 32
        blocks = torch.nn.functional.pad(x, (0, pad)).unflatten(-1, (-1, 32))
        scale = blocks.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
        return ((blocks / scale).round() * scale).flatten(-2)[..., : x.shape[-1]]

    exact = torch.log_softmax(logits_of(model, ids), -1)
    hooks = [m.register_forward_pre_hook(rounded) for m in model.modules() if isinstance(m, torch.nn.Linear)]
    noisy = torch.log_softmax(logits_of(model, ids), -1)
    for hook in hooks:
        hook.remove()
    target = torch.tensor(ids[1:]).unsqueeze(1)
    return (exact[:-1].gather(1, target) - noisy[:-1].gather(1, target)).abs().mean().item()


def write_golden(folder, name, model_path, weights_kind, model, seed):
    vocab = model.config.vocab_size
    draw = lambda n, what: torch.randint(0, vocab, (n,), generator=generator(seed, what)).tolist()
    prompts = [score(model, draw(n, f"prompt {n}")) for n in PROMPT_TOKENS]
    decoded_ids = prompts[4]["token_ids"]
    whole, stepwise = logits_of(model, decoded_ids), decode_logits(model, decoded_ids)
    cache_error = (whole - stepwise).abs().max().item()
    assert cache_error < 1e-4, f"{name}: prefill and decode differ by {cache_error}"
    noise = int8_noise(model, prompts[-1]["token_ids"])
    golden = {
        "model": model_path,
        "weights": weights_kind,
        "int8_activation_noise": round(noise, 5),
        "prompts": prompts,
        "greedy": [greedy(model, draw(n, f"greedy {n}")) for n in GREEDY_PROMPT_TOKENS],
    }
    path = folder / f"{name}.golden.json"
    if path.exists():
        assert json.loads(path.read_text())["model"] == model_path, f"{path} belongs to another model"
    path.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    margins = sorted(m for g in golden["greedy"] for m in g["margins"])
    print(
        f"{name}: logit std {whole.std():.2f}, decode vs prefill {cache_error:.1e}, int8 noise {noise:.4f},"
        f" median greedy margin {margins[len(margins) // 2]:.2f}, distinct greedy tokens"
        f" {len({t for g in golden['greedy'] for t in g['continuation']})}"
    )
