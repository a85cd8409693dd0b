//! Which tensors a model has, and in which format each is kept.
//!
//! Names and dimensions are those of llama.cpp's loaders (`src/models/deepseek2.cpp`, `qwen2.cpp`, `llama.cpp`);
//! formats those that llama-quantize picks without an importance matrix (`src/llama-quant.cpp`).

use std::str::FromStr;

use lingqu_tensor::Format;

use super::shape::{Attention, Mla, Moe, Shape};

/// A mixture of formats by the name that llama-quantize gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quant {
    Q4KM,
    Q8_0,
}

impl FromStr for Quant {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "q4_k_m" => Ok(Self::Q4KM),
            "q8_0" => Ok(Self::Q8_0),
            _ => Err(format!("--quant {name}: known are q4_k_m, q8_0")),
        }
    }
}

/// How MLA's up-projection of the latent is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `attn_k_b` (transposed) and `attn_v_b`: since April 2025.
    SplitKvB,
    /// One `attn_kv_b`: before.
    MergedKvB,
}

/// What is in a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// Norms.
    Ones,
    /// Normally distributed around 0 with this standard deviation.
    Normal { std: f32 },
}

#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    /// Outermost first; the last one is a row of the file.
    pub dims: Vec<usize>,
    pub format: Format,
    pub fill: Fill,
}

/// All tensors, in the order of the file.
pub fn tensors(shape: &Shape, quant: Quant, layout: Layout) -> Vec<Tensor> {
    let mut plan = Plan { shape, quant, tensors: Vec::new() };
    let (hidden, vocab) = (shape.hidden, shape.vocab);
    // Rows of the embedding are values as they are; as a head too, they are weights.
    let std = if shape.is_tied { fan_in(hidden) } else { 1.0 };
    plan.matrix_of("token_embd.weight".into(), &[vocab, hidden], std);
    for layer in 0..shape.layers {
        plan.norm(format!("blk.{layer}.attn_norm.weight"), hidden);
        match &shape.attention {
            Attention::Mla(mla) => plan.mla(layer, mla, layout),
            &Attention::Gqa { kv_heads, head_dim, has_qkv_bias } => {
                plan.gqa(layer, [shape.heads, kv_heads, kv_heads].map(|heads| heads * head_dim), has_qkv_bias)
            }
        }
        plan.norm(format!("blk.{layer}.ffn_norm.weight"), hidden);
        match &shape.moe {
            Some(moe) if layer >= moe.dense_layers => plan.moe(layer, moe),
            _ => plan.ffn(layer, "", &[], shape.intermediate),
        }
    }
    plan.norm("output_norm.weight".into(), hidden);
    if !shape.is_tied {
        plan.matrix("output.weight".into(), &[vocab, hidden]);
    }
    plan.tensors
}

/// The standard deviation at which a product keeps the size of what it multiplies.
fn fan_in(cols: usize) -> f32 {
    (cols as f32).powf(-0.5)
}

struct Plan<'a> {
    shape: &'a Shape,
    quant: Quant,
    tensors: Vec<Tensor>,
}

impl Plan<'_> {
    fn push(&mut self, name: String, dims: &[usize], format: Format, fill: Fill) {
        self.tensors.push(Tensor { name, dims: dims.to_vec(), format, fill });
    }

    fn norm(&mut self, name: String, width: usize) {
        self.push(name, &[width], Format::F32, Fill::Ones);
    }

    /// One that llama-quantize leaves alone.
    fn plain(&mut self, name: String, dims: &[usize], std: f32) {
        self.push(name, dims, Format::F32, Fill::Normal { std });
    }

    fn matrix(&mut self, name: String, dims: &[usize]) {
        self.matrix_of(name, dims, fan_in(dims[dims.len() - 1]));
    }

    fn matrix_of(&mut self, name: String, dims: &[usize], std: f32) {
        let format = self.format(&name, dims[dims.len() - 1]);
        self.push(name, dims, format, Fill::Normal { std });
    }

    /// `widths`: of queries, keys, values.
    fn gqa(&mut self, layer: usize, widths: [usize; 3], has_bias: bool) {
        let hidden = self.shape.hidden;
        for (part, width) in ["attn_q", "attn_k", "attn_v"].into_iter().zip(widths) {
            self.matrix(format!("blk.{layer}.{part}.weight"), &[width, hidden]);
            if has_bias {
                self.plain(format!("blk.{layer}.{part}.bias"), &[width], 0.1);
            }
        }
        self.matrix(format!("blk.{layer}.attn_output.weight"), &[hidden, widths[0]]);
    }

    fn mla(&mut self, layer: usize, mla: &Mla, layout: Layout) {
        let (hidden, heads) = (self.shape.hidden, self.shape.heads);
        let &Mla { kv_lora_rank, nope_dim, rope_dim, v_dim, .. } = mla;
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let q_width = heads * (nope_dim + rope_dim);
        match mla.q_lora_rank {
            None => self.matrix(name("attn_q"), &[q_width, hidden]),
            Some(rank) => {
                self.matrix(name("attn_q_a"), &[rank, hidden]);
                self.norm(name("attn_q_a_norm"), rank);
                self.matrix(name("attn_q_b"), &[q_width, rank]);
            }
        }
        self.matrix(name("attn_kv_a_mqa"), &[kv_lora_rank + rope_dim, hidden]);
        self.norm(name("attn_kv_a_norm"), kv_lora_rank);
        match layout {
            Layout::MergedKvB => self.matrix(name("attn_kv_b"), &[heads * (nope_dim + v_dim), kv_lora_rank]),
            Layout::SplitKvB => {
                // Stored transposed: what goes in is the latent all the same.
                self.matrix_of(name("attn_k_b"), &[heads, kv_lora_rank, nope_dim], fan_in(kv_lora_rank));
                self.matrix(name("attn_v_b"), &[heads, v_dim, kv_lora_rank]);
            }
        }
        self.matrix(name("attn_output"), &[hidden, heads * v_dim]);
    }

    fn moe(&mut self, layer: usize, moe: &Moe) {
        let hidden = self.shape.hidden;
        self.plain(format!("blk.{layer}.ffn_gate_inp.weight"), &[moe.experts, hidden], fan_in(hidden));
        if moe.is_sigmoid {
            self.plain(format!("blk.{layer}.exp_probs_b.bias"), &[moe.experts], 0.01);
        }
        self.ffn(layer, "_exps", &[moe.experts], moe.intermediate);
        if moe.shared_experts > 0 {
            self.ffn(layer, "_shexp", &[], moe.shared_experts * moe.intermediate);
        }
    }

    /// Gate, up and down of width `intermediate`; `stack`: how many of them lie in one tensor.
    fn ffn(&mut self, layer: usize, suffix: &str, stack: &[usize], intermediate: usize) {
        let hidden = self.shape.hidden;
        for (part, [rows, cols]) in
            [("gate", [intermediate, hidden]), ("up", [intermediate, hidden]), ("down", [hidden, intermediate])]
        {
            self.matrix(format!("blk.{layer}.ffn_{part}{suffix}.weight"), &[stack, &[rows, cols]].concat());
        }
    }

    /// llama-quantize's choice for a matrix with rows of `cols` values.
    fn format(&self, name: &str, cols: usize) -> Format {
        let wanted = match self.quant {
            Quant::Q8_0 => Format::Q8_0,
            Quant::Q4KM if self.is_sensitive(name) => Format::Q6K,
            Quant::Q4KM => Format::Q4K,
        };
        let fits = |format: Format| format.row_bytes(cols).is_some();
        match wanted {
            _ if fits(wanted) => wanted,
            Format::Q4K if fits(Format::Q5_0) => Format::Q5_0,
            Format::Q6K if fits(Format::Q8_0) => Format::Q8_0,
            _ => Format::F16,
        }
    }

    /// Whether Q4_K_M spends more bits on it: the head, and in half of the layers values and down projections.
    fn is_sensitive(&self, name: &str) -> bool {
        match name {
            "output.weight" => return true,
            "token_embd.weight" => return self.shape.is_tied,
            _ => {}
        }
        let mut pieces = name.split('.').skip(1);
        let layer: usize = pieces.next().and_then(|l| l.parse().ok()).expect("a layer's tensor");
        let part = pieces.next().unwrap_or_default();
        let more_often = part == "attn_v" || part == "attn_kv_b" || part.starts_with("ffn_down");
        more_often && use_more_bits(layer, self.shape.layers)
    }
}

/// The first and last eighth of the layers, and every third between.
fn use_more_bits(layer: usize, layers: usize) -> bool {
    layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2
}
