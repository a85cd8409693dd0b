//! Made-up values and weights for the tests of this crate.

use lingqu_tensor::{BlockScales, Format, HostTensor, quant};

use crate::isa::{Isa, Simd};

/// Every instruction set that this machine has, the portable one first.
pub(crate) fn every_simd() -> Vec<Simd> {
    Isa::ALL.into_iter().filter_map(|isa| Simd::choose(Some(isa)).ok()).collect()
}

/// A small generator of its own (xorshift64*), so that tests need no dependency and never change.
pub(crate) struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// 0 <= value < 1
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }
}

/// Values of about normal distribution.
pub(crate) fn normal(seed: u64, count: usize) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..count).map(|_| (0..6).map(|_| random.unit()).sum::<f32>() * 1.4 - 4.2).collect()
}

/// A matrix of normal values, encoded.
pub(crate) fn weights(seed: u64, format: Format, [rows, cols]: [usize; 2]) -> HostTensor {
    let values = normal(seed, rows * cols);
    if format == Format::Fp8E4M3 {
        let blocks = quant::encode_fp8_blocks(&values, [rows, cols], 128);
        let data: Vec<u8> = blocks.scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        let tensor = HostTensor::new("w", [rows, cols], format, blocks.data.into()).unwrap();
        let scales = BlockScales { data: data.into(), rows_per_block: 128, cols_per_block: 128 };
        return tensor.with_scales(scales).unwrap();
    }
    let rows_of_bytes = values.chunks(cols).map(|row| quant::encode_row(format, row).expect("whole blocks"));
    HostTensor::new("w", [rows, cols], format, rows_of_bytes.collect::<Vec<_>>().concat().into()).unwrap()
}

/// The values of a matrix by the scalar decode.
pub(crate) fn decoded(tensor: &HostTensor) -> Vec<f32> {
    crate::weights::decoded(tensor).unwrap()
}
