"""Brings transformers' native DeepSeek code in line with DeepSeek's own release code.

transformers 4.57.6 differs from `modeling_deepseek.py` (shipped with DeepSeek-V2/V2-Lite/V3) and from
DeepSeek-V3's `inference/model.py` in the points below. Real checkpoints were trained with the release code, so the
goldens follow it.

1. V2 attention: the release multiplies the softmax scale by yarn_get_mscale(factor, mscale_all_dim)^2 when
   `mscale_all_dim` is set. transformers' deepseek_v2 leaves it out (its deepseek_v3 has it).
2. V2 gate: the release honours `norm_topk_prob` (weights are divided by their sum and then NOT multiplied by
   routed_scaling_factor); transformers ignores the field. All V2 releases say false.
3. V3 gate: experts outside the chosen groups are masked with -inf in the release; transformers masks with 0.0, so an
   expert of a rejected group beats one of a chosen group whose score + correction bias is negative.
4. The inner norms (q_a_layernorm, kv_a_layernorm) take eps 1e-6 whatever rms_norm_eps says, in both. All releases
   have rms_norm_eps = 1e-6, and so do our models; nothing to patch.
"""

import math

import torch
import torch.nn.functional as F
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as v2
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3


def yarn_mscale(factor, mscale):
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


_v2_attention_init = v2.DeepseekV2Attention.__init__


def _patched_v2_attention_init(self, config, layer_idx=None):
    _v2_attention_init(self, config, layer_idx)
    scaling = config.rope_scaling
    if scaling and scaling.get("mscale_all_dim"):
        self.scaling *= yarn_mscale(scaling["factor"], scaling["mscale_all_dim"]) ** 2


def _group_mask(group_scores, topk_group, experts_per_group):
    chosen = torch.topk(group_scores, k=topk_group, dim=-1, sorted=False)[1]
    mask = torch.zeros_like(group_scores).scatter_(1, chosen, 1.0)
    return mask.repeat_interleave(experts_per_group, dim=1).bool()


def _patched_v2_gate(self, hidden_states):
    hidden = hidden_states.reshape(-1, hidden_states.shape[-1]).float()
    scores = F.linear(hidden, self.weight.float()).softmax(dim=-1)
    if self.topk_method == "greedy":
        weights, experts = torch.topk(scores, k=self.top_k, dim=-1)
    elif self.topk_method == "group_limited_greedy":
        size = self.num_experts // self.num_group
        best = scores.view(-1, self.num_group, size).max(dim=-1).values
        masked = scores.masked_fill(~_group_mask(best, self.topk_group, size), 0.0)
        weights, experts = torch.topk(masked, k=self.top_k, dim=-1)
    else:
        raise ValueError(self.topk_method)
    if self.top_k > 1 and self.norm_topk_prob:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    else:
        weights = weights * self.routed_scaling_factor
    return experts, weights


@torch.no_grad()
def _patched_v3_choice(self, scores):
    size = self.n_routed_experts // self.n_group
    biased = scores.view(-1, self.n_routed_experts) + self.e_score_correction_bias.unsqueeze(0)
    best_two = biased.view(-1, self.n_group, size).topk(2, dim=-1)[0].sum(dim=-1)
    masked = biased.masked_fill(~_group_mask(best_two, self.topk_group, size), float("-inf"))
    return torch.topk(masked, k=self.top_k, dim=-1, sorted=False)[1]


def apply():
    v2.DeepseekV2Attention.__init__ = _patched_v2_attention_init
    v2.DeepseekV2MoEGate.forward = _patched_v2_gate
    v3.DeepseekV3TopkRouter.get_topk_indices = _patched_v3_choice
