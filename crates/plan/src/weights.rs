//! In which format each weight will be, when there is no file yet to say so.

use std::str::FromStr;

use lingqu_tensor::Format;

/// A kind of file, by the name that people give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// Every matrix in one format; GGUF's keep routers in f32.
    Plain(Format),
    /// DeepSeek's release: matrices of the layers in FP8 with a scale to 128 x 128, the rest in BF16.
    Fp8,
    /// llama.cpp's mixture: 4.5 bits, and 6.6 for some of the down projections and for the head.
    Q4KM,
}

/// What a matrix is for, as far as formats ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Embedding,
    Head,
    Router,
    /// Norms and biases.
    Vector,
    /// The values' projection of attention, where it is a matrix of its own.
    Value,
    /// The down projection of a feed-forward part.
    Down,
    Other,
}

/// A matrix whose format is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    pub purpose: Use,
    /// Values of a row.
    pub cols: usize,
    pub layer: usize,
    pub layers: usize,
    pub tied_embeddings: bool,
}

const NAMES: [(&str, Weights); 11] = [
    ("bf16", Weights::Plain(Format::Bf16)),
    ("fp8", Weights::Fp8),
    ("q8_0", Weights::Plain(Format::Q8_0)),
    ("q6_k", Weights::Plain(Format::Q6K)),
    ("q5_0", Weights::Plain(Format::Q5_0)),
    ("q5_k", Weights::Plain(Format::Q5K)),
    ("q4_k_m", Weights::Q4KM),
    ("q4_0", Weights::Plain(Format::Q4_0)),
    ("q4_1", Weights::Plain(Format::Q4_1)),
    ("iq4_xs", Weights::Plain(Format::Iq4Xs)),
    ("q2_k", Weights::Plain(Format::Q2K)),
];

impl FromStr for Weights {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = NAMES.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
        let known = || NAMES.map(|(n, _)| n).join(", ");
        found.map(|&(_, weights)| weights).ok_or_else(|| format!("'{name}' is none of {}", known()))
    }
}

impl std::fmt::Display for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(NAMES.iter().find(|(_, w)| w == self).map_or("?", |(name, _)| name))
    }
}

impl Weights {
    pub(crate) fn format(self, matrix: Matrix) -> Format {
        let is_gguf = !matches!(self, Self::Fp8 | Self::Plain(Format::Bf16));
        let wanted = match (self, matrix.purpose) {
            (_, Use::Router | Use::Vector) if is_gguf => return Format::F32,
            (Self::Plain(format), _) => format,
            (Self::Fp8, Use::Embedding | Use::Head | Use::Router | Use::Vector) => Format::Bf16,
            (Self::Fp8, _) => Format::Fp8E4M3,
            (Self::Q4KM, Use::Head) => Format::Q6K,
            (Self::Q4KM, Use::Embedding) if matrix.tied_embeddings => Format::Q6K,
            (Self::Q4KM, Use::Value | Use::Down) if has_more_bits(matrix.layer, matrix.layers) => Format::Q6K,
            (Self::Q4KM, _) => Format::Q4K,
        };
        if matrix.cols.is_multiple_of(wanted.block_values()) { wanted } else { instead_of(wanted) }
    }
}

/// The first and the last eighth of the layers, and every third between: llama.cpp, `llama-quant.cpp`,
/// `use_more_bits`.
fn has_more_bits(layer: usize, layers: usize) -> bool {
    layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2
}

/// What llama.cpp takes where rows are not whole blocks of 256.
fn instead_of(format: Format) -> Format {
    match format {
        Format::Q6K => Format::Q8_0,
        Format::Q5K => Format::Q5_1,
        Format::Q4K => Format::Q5_0,
        Format::Q2K | Format::Q3K | Format::Iq4Xs => Format::Iq4Nl,
        other => other,
    }
}
