//! What is in the tensors: normally distributed values, quantised once and then repeated in random order.
//!
//! Quantising every value of a large model would take an hour; a pool of blocks, drawn from at random, gives rows that
//! all differ, with the scales and bits of real quantised weights, as fast as a disk takes them.

use std::io::{self, Write};

use lingqu_tensor::Format;
use lingqu_tensor::quant::encode_row;
use lingqu_testkit::rng::{Rng, mix};

use super::plan::{Fill, Tensor};

/// Values in a pool.
const POOL_VALUES: usize = 1 << 17;
/// Bytes handed to the file at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Writes the tensor's `bytes`. The same seed and name give the same bytes.
pub fn write(tensor: &Tensor, seed: u64, bytes: usize, out: &mut impl Write) -> io::Result<()> {
    let name_hash = tensor.name.bytes().fold(0, |hash, byte| mix(hash ^ u64::from(byte)));
    let mut rng = Rng::new(seed ^ name_hash);
    let block_bytes = tensor.format.block_bytes();
    let blocks = bytes / block_bytes;
    let pool = match tensor.fill {
        Fill::Ones => ones(tensor.format),
        Fill::Normal { std } => {
            let values: Vec<f32> = normal(&mut rng).map(|value| value * std).take(POOL_VALUES).collect();
            encode(tensor.format, &values)
        }
    };
    let mut chunk = Vec::with_capacity(CHUNK_BYTES + block_bytes);
    for _ in 0..blocks {
        let at = rng.below(pool.len() / block_bytes) * block_bytes;
        chunk.extend_from_slice(&pool[at..at + block_bytes]);
        if chunk.len() >= CHUNK_BYTES {
            out.write_all(&chunk)?;
            chunk.clear();
        }
    }
    out.write_all(&chunk)
}

fn ones(format: Format) -> Vec<u8> {
    encode(format, &vec![1.0; format.block_values()])
}

fn encode(format: Format, values: &[f32]) -> Vec<u8> {
    encode_row(format, values).expect("a whole number of blocks of a GGUF format")
}

/// Standard normal values (Box and Muller 1958).
fn normal(rng: &mut Rng) -> impl Iterator<Item = f32> {
    std::iter::repeat_with(move || {
        // 53 bits, above 0 so that the logarithm is finite.
        let mut uniform = || ((rng.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64;
        let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), std::f64::consts::TAU * uniform());
        [(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]
    })
    .flatten()
}
