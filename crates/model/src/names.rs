//! What a file calls each weight: Hugging Face's module paths, or llama.cpp's tensor names
//! (`gguf-py/gguf/constants.py`, `TENSOR_NAMES`).

use std::fmt::Write as _;

/// A weight's place in a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Embedding,
    FinalNorm,
    Head,
    /// Divisors of rope's frequencies: only GGUF files of Llama 3.1 and later have them.
    RopeFactors,
    AttentionNorm,
    FfnNorm,
    Query,
    Key,
    Value,
    Output,
    QueryBias,
    KeyBias,
    ValueBias,
    OutputBias,
    /// MLA: hidden to the query's latent, its norm, and from there to the heads.
    QueryA,
    QueryANorm,
    QueryB,
    /// MLA: hidden to the latent and the rope key, the latent's norm, and from there to the heads' keys and values.
    KvA,
    KvANorm,
    KvB,
    /// The two halves of [`Role::KvB`], the keys' one transposed: only in newer GGUF files.
    KeyB,
    ValueB,
    FfnGate,
    FfnUp,
    FfnDown,
    Router,
    RouterBias,
    SharedGate,
    SharedUp,
    SharedDown,
    ExpertGate,
    ExpertUp,
    ExpertDown,
    /// The prediction layer: norms of the embedding and of the state that it joins, what joins them, and its last norm.
    PredictionEmbeddingNorm,
    PredictionStateNorm,
    PredictionProjection,
    PredictionNorm,
}

/// Which of the two languages a checkpoint speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    HuggingFace,
    Gguf,
}

/// `{l}` is the layer, `{e}` the expert. GGUF stacks all experts of a layer in one tensor. Empty: not in such files.
const NAMES: [(Role, &str, &str); 37] = [
    (Role::Embedding, "model.embed_tokens.weight", "token_embd.weight"),
    (Role::FinalNorm, "model.norm.weight", "output_norm.weight"),
    (Role::Head, "lm_head.weight", "output.weight"),
    (Role::RopeFactors, "", "rope_freqs.weight"),
    (Role::AttentionNorm, "model.layers.{l}.input_layernorm.weight", "blk.{l}.attn_norm.weight"),
    (Role::FfnNorm, "model.layers.{l}.post_attention_layernorm.weight", "blk.{l}.ffn_norm.weight"),
    (Role::Query, "model.layers.{l}.self_attn.q_proj.weight", "blk.{l}.attn_q.weight"),
    (Role::Key, "model.layers.{l}.self_attn.k_proj.weight", "blk.{l}.attn_k.weight"),
    (Role::Value, "model.layers.{l}.self_attn.v_proj.weight", "blk.{l}.attn_v.weight"),
    (Role::Output, "model.layers.{l}.self_attn.o_proj.weight", "blk.{l}.attn_output.weight"),
    (Role::QueryBias, "model.layers.{l}.self_attn.q_proj.bias", "blk.{l}.attn_q.bias"),
    (Role::KeyBias, "model.layers.{l}.self_attn.k_proj.bias", "blk.{l}.attn_k.bias"),
    (Role::ValueBias, "model.layers.{l}.self_attn.v_proj.bias", "blk.{l}.attn_v.bias"),
    (Role::OutputBias, "model.layers.{l}.self_attn.o_proj.bias", "blk.{l}.attn_output.bias"),
    (Role::QueryA, "model.layers.{l}.self_attn.q_a_proj.weight", "blk.{l}.attn_q_a.weight"),
    (Role::QueryANorm, "model.layers.{l}.self_attn.q_a_layernorm.weight", "blk.{l}.attn_q_a_norm.weight"),
    (Role::QueryB, "model.layers.{l}.self_attn.q_b_proj.weight", "blk.{l}.attn_q_b.weight"),
    (Role::KvA, "model.layers.{l}.self_attn.kv_a_proj_with_mqa.weight", "blk.{l}.attn_kv_a_mqa.weight"),
    (Role::KvANorm, "model.layers.{l}.self_attn.kv_a_layernorm.weight", "blk.{l}.attn_kv_a_norm.weight"),
    (Role::KvB, "model.layers.{l}.self_attn.kv_b_proj.weight", "blk.{l}.attn_kv_b.weight"),
    (Role::KeyB, "", "blk.{l}.attn_k_b.weight"),
    (Role::ValueB, "", "blk.{l}.attn_v_b.weight"),
    (Role::FfnGate, "model.layers.{l}.mlp.gate_proj.weight", "blk.{l}.ffn_gate.weight"),
    (Role::FfnUp, "model.layers.{l}.mlp.up_proj.weight", "blk.{l}.ffn_up.weight"),
    (Role::FfnDown, "model.layers.{l}.mlp.down_proj.weight", "blk.{l}.ffn_down.weight"),
    (Role::Router, "model.layers.{l}.mlp.gate.weight", "blk.{l}.ffn_gate_inp.weight"),
    (Role::RouterBias, "model.layers.{l}.mlp.gate.e_score_correction_bias", "blk.{l}.exp_probs_b.bias"),
    (Role::SharedGate, "model.layers.{l}.mlp.shared_experts.gate_proj.weight", "blk.{l}.ffn_gate_shexp.weight"),
    (Role::SharedUp, "model.layers.{l}.mlp.shared_experts.up_proj.weight", "blk.{l}.ffn_up_shexp.weight"),
    (Role::SharedDown, "model.layers.{l}.mlp.shared_experts.down_proj.weight", "blk.{l}.ffn_down_shexp.weight"),
    (Role::ExpertGate, "model.layers.{l}.mlp.experts.{e}.gate_proj.weight", "blk.{l}.ffn_gate_exps.weight"),
    (Role::ExpertUp, "model.layers.{l}.mlp.experts.{e}.up_proj.weight", "blk.{l}.ffn_up_exps.weight"),
    (Role::ExpertDown, "model.layers.{l}.mlp.experts.{e}.down_proj.weight", "blk.{l}.ffn_down_exps.weight"),
    (Role::PredictionEmbeddingNorm, "model.layers.{l}.enorm.weight", "blk.{l}.nextn.enorm.weight"),
    (Role::PredictionStateNorm, "model.layers.{l}.hnorm.weight", "blk.{l}.nextn.hnorm.weight"),
    (Role::PredictionProjection, "model.layers.{l}.eh_proj.weight", "blk.{l}.nextn.eh_proj.weight"),
    (Role::PredictionNorm, "model.layers.{l}.shared_head.norm.weight", "blk.{l}.nextn.shared_head_norm.weight"),
];

impl Role {
    /// What people call weights of this kind, as `lingqu inspect` groups them.
    pub const fn group(self) -> &'static str {
        use Role::*;
        match self {
            Embedding => "embedding",
            Head => "head",
            FinalNorm | AttentionNorm | FfnNorm | QueryANorm | KvANorm | RopeFactors => "norms",
            Query | Key | Value | Output | QueryBias | KeyBias | ValueBias | OutputBias => "attention",
            QueryA | QueryB | KvA | KvB | KeyB | ValueB => "attention",
            FfnGate | FfnUp | FfnDown => "dense ffn",
            Router | RouterBias => "router",
            SharedGate | SharedUp | SharedDown => "shared experts",
            ExpertGate | ExpertUp | ExpertDown => "routed experts",
            PredictionEmbeddingNorm | PredictionStateNorm | PredictionNorm => "norms",
            PredictionProjection => "prediction",
        }
    }
}

/// A weight as a file names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub role: Role,
    /// `None` for weights outside the layers.
    pub layer: Option<usize>,
    /// `None` where the tensor is not of one expert.
    pub expert: Option<usize>,
}

impl Naming {
    fn pattern(self, entry: &(Role, &'static str, &'static str)) -> &'static str {
        match self {
            Naming::HuggingFace => entry.1,
            Naming::Gguf => entry.2,
        }
    }

    /// The tensor that holds `role`; empty where such files have none. `layer` and `expert` are put in where the
    /// name has them.
    pub fn name(self, role: Role, layer: usize, expert: usize) -> String {
        let entry = NAMES.iter().find(|entry| entry.0 == role).expect("every role has a row");
        let mut name = String::new();
        for (i, piece) in self.pattern(entry).split(['{', '}']).enumerate() {
            match piece {
                "l" if i % 2 == 1 => write!(name, "{layer}").expect("writing to a string"),
                "e" if i % 2 == 1 => write!(name, "{expert}").expect("writing to a string"),
                text => name.push_str(text),
            }
        }
        name
    }

    /// The place of the tensor `name`, or `None` for one that no model here has.
    pub fn place(self, name: &str) -> Option<Place> {
        NAMES.iter().find_map(|entry| {
            let (layer, expert) = match_pattern(self.pattern(entry), name)?;
            Some(Place { role: entry.0, layer, expert })
        })
    }
}

/// Layer and expert, where `name` is `pattern` with numbers put in.
fn match_pattern(pattern: &str, name: &str) -> Option<(Option<usize>, Option<usize>)> {
    if pattern.is_empty() {
        return None;
    }
    let (mut layer, mut expert, mut rest) = (None, None, name);
    for (i, piece) in pattern.split(['{', '}']).enumerate() {
        if i % 2 == 0 {
            rest = rest.strip_prefix(piece)?;
            continue;
        }
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        if piece == "l" { layer = Some(number) } else { expert = Some(number) }
    }
    rest.is_empty().then_some((layer, expert))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_places_are_inverse() {
        for naming in [Naming::HuggingFace, Naming::Gguf] {
            for entry in NAMES.iter().filter(|e| !naming.pattern(e).is_empty()) {
                let name = naming.name(entry.0, 12, 34);
                let place = naming.place(&name).expect(&name);
                assert_eq!(place.role, entry.0, "{name}");
                assert_eq!(place.layer.is_some(), naming.pattern(entry).contains("{l}"), "{name}");
                assert!(place.layer.is_none_or(|l| l == 12) && place.expert.is_none_or(|e| e == 34), "{name}");
            }
        }
    }

    #[test]
    fn released_names_are_known() {
        let check = |naming: Naming, name: &str, role: Option<Role>| {
            assert_eq!(naming.place(name).map(|p| p.role), role, "{name}");
        };
        let hf = Naming::HuggingFace;
        check(hf, "model.layers.3.mlp.experts.255.down_proj.weight", Some(Role::ExpertDown));
        check(hf, "model.layers.60.self_attn.kv_a_proj_with_mqa.weight", Some(Role::KvA));
        check(hf, "model.layers.x.self_attn.q_proj.weight", None);
        check(hf, "model.layers.1.self_attn.q_proj.weight_scale_inv", None);
        check(hf, "model.layers.61.eh_proj.weight", Some(Role::PredictionProjection));
        check(hf, "model.layers.61.shared_head.head.weight", None);
        check(Naming::Gguf, "blk.60.ffn_down_exps.weight", Some(Role::ExpertDown));
        check(Naming::Gguf, "blk.3.exp_probs_b.bias", Some(Role::RouterBias));
        check(Naming::Gguf, "", None);
    }
}
