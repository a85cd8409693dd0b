//! How rows cross.

use half::bf16;
use serde::Deserialize;

/// Values of a row that share a scale.
const GROUP: usize = 128;

/// How rows go to the workers, and what experts make of them comes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WireFormat {
    /// As they are, both ways.
    #[default]
    F32,
    /// Rounded to the nearest, ties to even, both ways.
    Bf16,
    /// Rows in 8 bits with a scale for each 128 values; back as [`WireFormat::Bf16`], for errors of outputs are not
    /// evened out by an expert's sums any more (DeepSeek-V3 paper, section 3.3.2, dispatches in FP8 and combines in
    /// BF16).
    Int8,
}

impl WireFormat {
    pub(crate) const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Int8];

    /// How outputs come back.
    pub(crate) fn back(self) -> Self {
        match self {
            Self::F32 => Self::F32,
            Self::Bf16 | Self::Int8 => Self::Bf16,
        }
    }

    /// Bytes of a row of `width` values.
    pub fn row_bytes(self, width: usize) -> usize {
        match self {
            Self::F32 => 4 * width,
            Self::Bf16 => 2 * width,
            Self::Int8 => width + 4 * width.div_ceil(GROUP),
        }
    }

    /// Appends rows of `width` values.
    pub(crate) fn encode(self, width: usize, values: &[f32], out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + values.len() / width * self.row_bytes(width), 0);
        let rows = values.chunks_exact(width).zip(out[start..].chunks_exact_mut(self.row_bytes(width)));
        rows.for_each(|(values, bytes)| self.encode_row(values, bytes));
    }

    fn encode_row(self, values: &[f32], bytes: &mut [u8]) {
        match self {
            Self::F32 => bytes.chunks_exact_mut(4).zip(values).for_each(|(b, v)| b.copy_from_slice(&v.to_le_bytes())),
            Self::Bf16 => {
                let narrow = |v: f32| bf16::from_f32(v).to_le_bytes();
                bytes.chunks_exact_mut(2).zip(values).for_each(|(b, v)| b.copy_from_slice(&narrow(*v)));
            }
            Self::Int8 => {
                let (scales, codes) = bytes.split_at_mut(4 * values.len().div_ceil(GROUP));
                let groups = values.chunks(GROUP).zip(codes.chunks_mut(GROUP)).zip(scales.chunks_exact_mut(4));
                for ((values, codes), scale) in groups {
                    let most = values.iter().fold(0.0f32, |most, v| most.max(v.abs()));
                    // What is no number must not look like one on the other side.
                    let is_finite = values.iter().all(|v| v.is_finite());
                    let step = if is_finite { most / 127.0 } else { f32::NAN };
                    scale.copy_from_slice(&step.to_le_bytes());
                    let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
                    let code = |v: f32| (v * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
                    codes.iter_mut().zip(values).for_each(|(c, v)| *c = code(*v) as u8);
                }
            }
        }
    }

    /// `bytes` are rows of `width` values, as many as `out` has.
    pub(crate) fn decode(self, width: usize, bytes: &[u8], out: &mut [f32]) {
        debug_assert_eq!(bytes.len(), out.len() / width * self.row_bytes(width));
        let rows = bytes.chunks_exact(self.row_bytes(width)).zip(out.chunks_exact_mut(width));
        rows.for_each(|(bytes, values)| self.decode_row(bytes, values));
    }

    fn decode_row(self, bytes: &[u8], values: &mut [f32]) {
        let single = |b: &[u8]| f32::from_le_bytes(b.try_into().expect("4 bytes"));
        match self {
            Self::F32 => bytes.chunks_exact(4).zip(values).for_each(|(b, v)| *v = single(b)),
            Self::Bf16 => {
                let wide = |b: &[u8]| bf16::from_le_bytes(b.try_into().expect("2 bytes")).to_f32();
                bytes.chunks_exact(2).zip(values).for_each(|(b, v)| *v = wide(b));
            }
            Self::Int8 => {
                let (scales, codes) = bytes.split_at(4 * values.len().div_ceil(GROUP));
                let groups = values.chunks_mut(GROUP).zip(codes.chunks(GROUP)).zip(scales.chunks_exact(4));
                for ((values, codes), scale) in groups {
                    let step = single(scale);
                    codes.iter().zip(values).for_each(|(c, v)| *v = f32::from(*c as i8) * step);
                }
            }
        }
    }

    /// What rows of `width` values are once they have crossed.
    pub(crate) fn round(self, width: usize, values: &mut [f32]) {
        if self == Self::F32 {
            return;
        }
        let mut bytes = vec![0; self.row_bytes(width)];
        for row in values.chunks_exact_mut(width) {
            self.encode_row(row, &mut bytes);
            self.decode_row(&bytes, row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crossed(wire: WireFormat, width: usize, values: &[f32]) -> Vec<f32> {
        let (mut bytes, mut crossed) = (Vec::new(), vec![0.0; values.len()]);
        wire.encode(width, values, &mut bytes);
        assert_eq!(bytes.len(), values.len() / width * wire.row_bytes(width), "{wire:?}");
        wire.decode(width, &bytes, &mut crossed);
        crossed
    }

    #[test]
    fn crossing_is_rounding() {
        let values = [1.0, -0.0, 1.0 + 1.0 / 256.0, 1e-40, f32::MAX, f32::NEG_INFINITY];
        for wire in WireFormat::ALL {
            let mut rounded = values;
            wire.round(3, &mut rounded);
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&crossed(wire, 3, &values)), bits(&rounded), "{wire:?}");
        }
        assert_eq!(crossed(WireFormat::F32, 1, &[0.1]), [0.1]);
        assert_eq!(crossed(WireFormat::Bf16, 1, &[1.0 + 1.0 / 256.0]), [1.0]);
    }

    #[test]
    fn codes_of_8_bits_are_off_by_half_a_step() {
        let width = 300; // two groups and a part of one
        let values: Vec<f32> =
            (0..2 * width).map(|i| ((i * 7919 % 1009) as f32 - 504.0) * (1 + i / 100) as f32).collect();
        let crossed = crossed(WireFormat::Int8, width, &values);
        for (row, other) in values.chunks(width).zip(crossed.chunks(width)) {
            for (group, other) in row.chunks(GROUP).zip(other.chunks(GROUP)) {
                let most = group.iter().fold(0.0f32, |most, v| most.max(v.abs()));
                for (v, w) in group.iter().zip(other) {
                    assert!((v - w).abs() <= most / 127.0 * 0.5001, "{v} became {w} where {most} is the most");
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for wire in WireFormat::ALL {
                let crossed = crossed(wire, 4, &[1.0, poison, 2.0, 3.0]);
                assert!(!crossed[1].is_finite(), "{poison} became {} by {wire:?}", crossed[1]);
            }
        }
        assert_eq!(crossed(WireFormat::Int8, 2, &[0.0, -0.0]), [0.0, 0.0]);
    }
}
