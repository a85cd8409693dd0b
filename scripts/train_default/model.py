"""DeepSeek-V3's architecture in plain PyTorch, small, for training on a CPU or one GPU.

Follows arXiv 2412.19437, section 2: MLA with a query rank (2.1.1), sigmoid routing with groups and a bias that balances
without a loss (2.1.2), one multi-token-prediction layer (2.2). Tensors carry the release's names once exported
(`Model.release_tensors`); experts are stacked here because that trains faster.
"""

import json
import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn


PAD = 256
# Elementwise work in one pass over memory.
fused = torch.compile(dynamic=True)


@dataclass(frozen=True)
class Config:
    """Sizes, under the names of the release's config.json."""

    vocab_size: int = 6400
    hidden_size: int = 256
    intermediate_size: int = 512
    moe_intermediate_size: int = 128
    num_hidden_layers: int = 6
    first_k_dense_replace: int = 1
    num_nextn_predict_layers: int = 1
    num_attention_heads: int = 8
    q_lora_rank: int = 128
    kv_lora_rank: int = 64
    qk_nope_head_dim: int = 32
    qk_rope_head_dim: int = 16
    v_head_dim: int = 32
    n_routed_experts: int = 16
    n_shared_experts: int = 1
    num_experts_per_tok: int = 4
    n_group: int = 4
    topk_group: int = 2
    routed_scaling_factor: float = 2.0
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    @staticmethod
    def from_checkpoint(path):
        known = Config.__dataclass_fields__
        return Config(**{k: v for k, v in json.load(open(path, encoding="utf-8")).items() if k in known})

    def as_dict(self):
        return asdict(self)


def linear(x, weight):
    return F.linear(x, weight.to(x.dtype))


def matrix(*shape, scale=1.0):
    """A weight [.., out, in] with the deviation that keeps activations' size."""
    return nn.Parameter(torch.randn(*shape) * scale / math.sqrt(shape[-1]))


class RmsNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        return rms_norm(x, self.weight, self.eps)


def rope_table(config, positions):
    """cos and sin [.., rope_dim / 2] of positions; pairs are interleaved, as in the release."""
    half = config.qk_rope_head_dim // 2
    frequency = config.rope_theta ** (-torch.arange(half, device=positions.device, dtype=torch.float32) / half)
    angle = positions[..., None].float() * frequency
    return angle.cos(), angle.sin()


@fused
def rope(x, cos, sin):
    """Turns pairs (2 i, 2 i + 1) of the last axis."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Multi-head latent attention, expanded: the absorbed form is the engine's business."""

    def __init__(self, c):
        super().__init__()
        self.c = c
        heads, nope, rope_dim = c.num_attention_heads, c.qk_nope_head_dim, c.qk_rope_head_dim
        depth = 1 / math.sqrt(2 * c.num_hidden_layers)
        self.q_a_proj = matrix(c.q_lora_rank, c.hidden_size)
        self.q_a_layernorm = RmsNorm(c.q_lora_rank, c.rms_norm_eps)
        self.q_b_proj = matrix(heads * (nope + rope_dim), c.q_lora_rank)
        self.kv_a_proj_with_mqa = matrix(c.kv_lora_rank + rope_dim, c.hidden_size)
        self.kv_a_layernorm = RmsNorm(c.kv_lora_rank, c.rms_norm_eps)
        self.kv_b_proj = matrix(heads * (nope + c.v_head_dim), c.kv_lora_rank)
        self.o_proj = matrix(c.hidden_size, heads * c.v_head_dim, scale=depth)

    def forward(self, x, mask, cos, sin):
        # x [rows, length, hidden]; mask [rows, 1, length, length]; cos, sin [rows, length, rope_dim / 2]
        c = self.c
        heads, nope, rope_dim = c.num_attention_heads, c.qk_nope_head_dim, c.qk_rope_head_dim
        q = linear(self.q_a_layernorm(linear(x, self.q_a_proj)), self.q_b_proj).unflatten(-1, (heads, -1)).transpose(1, 2)
        latent, k_rope = linear(x, self.kv_a_proj_with_mqa).split([c.kv_lora_rank, rope_dim], -1)
        kv = linear(self.kv_a_layernorm(latent), self.kv_b_proj).unflatten(-1, (heads, -1)).transpose(1, 2)
        k_nope, v = kv.split([nope, c.v_head_dim], -1)
        cos, sin = cos[:, None], sin[:, None]
        q = torch.cat((q[..., :nope], rope(q[..., nope:], cos, sin)), -1)
        k_rope = rope(k_rope[:, None], cos, sin).expand(-1, heads, -1, -1)
        k = torch.cat((k_nope, k_rope), -1)
        # Plain: on a CPU several times faster than PyTorch's fused attention at these sizes, backward above all.
        scores = (q * (nope + rope_dim) ** -0.5) @ k.mT + mask
        out = scores.softmax(-1) @ v
        return linear(out.transpose(1, 2).flatten(-2), self.o_proj)


class Mlp(nn.Module):
    def __init__(self, hidden, inner, depth):
        super().__init__()
        self.gate_up = matrix(2 * inner, hidden)
        self.down_proj = matrix(hidden, inner, scale=depth)

    def forward(self, x):
        return swiglu(x, self.gate_up, self.down_proj)


def swiglu(x, gate_up, down):
    return linear(gated(linear(x, gate_up)), down)


@fused
def gated(x):
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


@fused
def rms_norm(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


class Experts(nn.Module):
    """Shared and routed experts (2.1.2)."""

    def __init__(self, c):
        super().__init__()
        self.c = c
        depth = 1 / math.sqrt(2 * c.num_hidden_layers)
        self.gate = matrix(c.n_routed_experts, c.hidden_size)
        self.register_buffer("e_score_correction_bias", torch.zeros(c.n_routed_experts))
        self.gate_up = matrix(c.n_routed_experts, 2 * c.moe_intermediate_size, c.hidden_size)
        self.down_proj = matrix(c.n_routed_experts, c.hidden_size, c.moe_intermediate_size, scale=depth)
        self.shared_experts = Mlp(c.hidden_size, c.n_shared_experts * c.moe_intermediate_size, depth)
        # Tokens each expert was given since the last step.
        self.register_buffer("load", torch.zeros(c.n_routed_experts), persistent=False)

    def route(self, x):
        """Experts and weights [tokens, top_k] of x [tokens, hidden]; the bias chooses, the scores weigh."""
        c = self.c
        scores = F.linear(x.float(), self.gate).sigmoid()
        choice = (scores + self.e_score_correction_bias).detach()
        groups = choice.unflatten(-1, (c.n_group, -1)).topk(2, -1).values.sum(-1)
        best = groups.topk(c.topk_group, -1).indices
        open_groups = torch.zeros_like(groups).scatter_(1, best, 1.0).repeat_interleave(choice.shape[1] // c.n_group, 1)
        experts = choice.masked_fill(open_groups == 0, -math.inf).topk(c.num_experts_per_tok, -1).indices
        weights = scores.gather(1, experts)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * c.routed_scaling_factor
        return experts, weights

    def forward(self, x):
        shape, x = x.shape, x.flatten(0, -2)
        experts, weights = self.route(x)
        flat = experts.flatten()
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=self.c.n_routed_experts)
        self.load += counts
        # Each expert's rows are padded to a multiple of PAD: a matrix product of a new size is compiled anew on a CPU.
        padded = (counts + PAD - 1) // PAD * PAD
        shift = (padded - counts).cumsum(0) - (padded - counts)
        place = torch.arange(len(order), device=x.device) + shift[flat[order]]
        source = torch.zeros(int(padded.sum()), dtype=torch.long, device=x.device)
        source[place] = order // self.c.num_experts_per_tok
        back = torch.empty_like(order).scatter_(0, order, place)
        # [tokens * top_k and padding, hidden], by expert
        grouped = x.index_select(0, source)
        gate_up, down = self.gate_up.to(x.dtype).unbind(0), self.down_proj.to(x.dtype).unbind(0)
        parts = [swiglu(part, gate_up[e], down[e]) for e, part in enumerate(grouped.split(padded.tolist()))]
        each = torch.cat(parts).index_select(0, back).unflatten(0, (-1, self.c.num_experts_per_tok))
        routed = torch.bmm(weights.to(x.dtype)[:, None], each)[:, 0]
        return (routed + self.shared_experts(x)).view(shape)


class Layer(nn.Module):
    def __init__(self, c, dense):
        super().__init__()
        depth = 1 / math.sqrt(2 * c.num_hidden_layers)
        self.input_layernorm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = Mlp(c.hidden_size, c.intermediate_size, depth) if dense else Experts(c)

    def forward(self, x, mask, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), mask, cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class NextToken(nn.Module):
    """The multi-token-prediction layer (2.2): from a token's final state and the token after it, the one after that."""

    def __init__(self, c):
        super().__init__()
        self.enorm, self.hnorm = RmsNorm(c.hidden_size, c.rms_norm_eps), RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.eh_proj = matrix(c.hidden_size, 2 * c.hidden_size)
        self.layer = Layer(c, dense=False)
        self.norm = RmsNorm(c.hidden_size, c.rms_norm_eps)

    def forward(self, states, next_embedding, mask, cos, sin):
        joined = torch.cat((self.enorm(next_embedding), self.hnorm(states)), -1)
        return self.norm(self.layer(linear(joined, self.eh_proj), mask, cos, sin))


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.embed_tokens = nn.Parameter(torch.randn(c.vocab_size, c.hidden_size) * 0.02)
        self.layers = nn.ModuleList(Layer(c, i < c.first_k_dense_replace) for i in range(c.num_hidden_layers))
        self.norm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.lm_head = matrix(c.vocab_size, c.hidden_size, scale=0.5)
        self.next_token = NextToken(c)

    def experts(self):
        """The MoE blocks, in the order of their layers; the prediction layer's last."""
        return [m for m in self.modules() if isinstance(m, Experts)]

    def states(self, ids, positions, mask):
        """Final states [rows, length, hidden] after the last norm, and what the prediction layer needs beside them."""
        cos, sin = rope_table(self.c, positions)
        x = F.embedding(ids, self.embed_tokens).to(torch.bfloat16 if mask.dtype == torch.bfloat16 else torch.float32)
        for layer in self.layers:
            x = layer(x, mask, cos, sin)
        return self.norm(x), cos, sin

    def loss(self, batch, mtp_weight):
        """Mean loss in nats of the next token, and of the one after it (or None)."""
        ids, targets, positions, mask = batch
        states, cos, sin = self.states(ids, positions, mask)
        main = head_loss(states, self.lm_head, targets)
        if mtp_weight == 0:
            return main, None
        # The token after each one is its target; a document's end has none, and is not asked.
        known = targets.clamp(min=0)
        states = self.next_token(states, F.embedding(known, self.embed_tokens).to(states.dtype), mask, cos, sin)
        after = torch.full_like(targets, -100)
        after[:, :-1] = targets[:, 1:]
        after[targets < 0] = -100
        return main, head_loss(states, self.lm_head, after)

    def release_tensors(self):
        """Every tensor under the name that DeepSeek's release gives it."""
        out = {"model.embed_tokens.weight": self.embed_tokens, "model.norm.weight": self.norm.weight,
               "lm_head.weight": self.lm_head}
        mtp = f"model.layers.{self.c.num_hidden_layers}"
        layers = [(f"model.layers.{i}", layer) for i, layer in enumerate(self.layers)]
        for prefix, layer in [*layers, (mtp, self.next_token.layer)]:
            layer_tensors(out, prefix, layer)
        out |= {f"{mtp}.enorm.weight": self.next_token.enorm.weight, f"{mtp}.hnorm.weight": self.next_token.hnorm.weight,
                f"{mtp}.eh_proj.weight": self.next_token.eh_proj, f"{mtp}.shared_head.norm.weight": self.next_token.norm.weight}
        return {name: tensor.detach().float().contiguous() for name, tensor in out.items()}


def layer_tensors(out, prefix, layer):
    for name in ("input_layernorm", "post_attention_layernorm"):
        out[f"{prefix}.{name}.weight"] = getattr(layer, name).weight
    for name, value in layer.self_attn.named_parameters():
        out[f"{prefix}.self_attn.{name}" + ("" if name.endswith(".weight") else ".weight")] = value
    moe = isinstance(layer.mlp, Experts)
    mlps = [(f"{prefix}.mlp", layer.mlp.gate_up, layer.mlp.down_proj)] if not moe else []
    if moe:
        out[f"{prefix}.mlp.gate.weight"] = layer.mlp.gate
        out[f"{prefix}.mlp.gate.e_score_correction_bias"] = layer.mlp.e_score_correction_bias
        shared = layer.mlp.shared_experts
        mlps = [(f"{prefix}.mlp.shared_experts", shared.gate_up, shared.down_proj)]
        mlps += [(f"{prefix}.mlp.experts.{e}", gate_up, layer.mlp.down_proj[e])
                 for e, gate_up in enumerate(layer.mlp.gate_up)]
    for name, gate_up, down in mlps:
        gate, up = gate_up.chunk(2)
        out |= {f"{name}.gate_proj.weight": gate, f"{name}.up_proj.weight": up, f"{name}.down_proj.weight": down}


def head_loss(states, head, targets):
    logits = linear(states, head).flatten(0, -2)
    return F.cross_entropy(logits.float(), targets.flatten(), ignore_index=-100)
