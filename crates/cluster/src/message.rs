//! What the two sides say to each other. Numbers are little-endian; whatever arrives is checked against its length.
//!
//! ```text
//! serve            worker
//! greeting      -> answer, or a refusal
//! LOAD          -> LOADED | FAILED     experts of one layer, to be held from now on
//! COMPUTE       -> OUTPUTS | FAILED    rows, and which expert each of them meets
//! PING          -> PONG
//! ```

use half::bf16;
use lingqu_fabric::FRAME_BYTES_MAX;
use serde::Deserialize;

/// Of what is said here; the fabric has its own.
const VERSION: u32 = 1;

pub(crate) const LOAD: u16 = 1;
pub(crate) const LOADED: u16 = 2;
pub(crate) const COMPUTE: u16 = 3;
pub(crate) const OUTPUTS: u16 = 4;
pub(crate) const PING: u16 = 5;
pub(crate) const PONG: u16 = 6;
/// The message is text, for the log.
pub(crate) const FAILED: u16 = 7;

/// How activations cross, both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WireFormat {
    /// As they are.
    #[default]
    F32,
    /// Rounded to the nearest, ties to even. Half the bytes; [`PairExchange`](crate::PairExchange) rounds alike in one
    /// process.
    Bf16,
}

impl WireFormat {
    pub fn value_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    pub(crate) fn encode(self, values: &[f32], out: &mut Vec<u8>) {
        match self {
            Self::F32 => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
            Self::Bf16 => out.extend(values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes())),
        }
    }

    /// `bytes` are `out.len()` values.
    pub(crate) fn decode(self, bytes: &[u8], out: &mut [f32]) {
        debug_assert_eq!(bytes.len(), out.len() * self.value_bytes());
        match self {
            Self::F32 => {
                for (b, v) in bytes.chunks_exact(4).zip(out) {
                    *v = f32::from_le_bytes(b.try_into().expect("4 bytes"));
                }
            }
            Self::Bf16 => {
                for (b, v) in bytes.chunks_exact(2).zip(out) {
                    *v = bf16::from_le_bytes(b.try_into().expect("2 bytes")).to_f32();
                }
            }
        }
    }

    /// What values are once they have crossed.
    pub(crate) fn round(self, values: &mut [f32]) {
        if self == Self::Bf16 {
            values.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32());
        }
    }
}

/// Who calls whom, about what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Greeting {
    pub worker: u32,
    pub wire: WireFormat,
    /// Of the checkpoint.
    pub fingerprint: [u8; 32],
}

impl Greeting {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in [VERSION, self.worker, self.wire as u32] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.fingerprint);
        bytes
    }

    /// The error is for the caller to read.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let mut reader = Reader(bytes);
        let version = reader.number().ok_or("an empty greeting")?;
        if version != VERSION {
            return Err(format!("the cluster's messages have version {version}, not {VERSION}"));
        }
        let mut rest = || {
            let (worker, wire) = (reader.number()?, reader.number()?);
            let wire = [WireFormat::F32, WireFormat::Bf16].into_iter().find(|w| *w as u32 == wire)?;
            Some(Self { worker, wire, fingerprint: reader.0.try_into().ok()? })
        };
        rest().ok_or_else(|| "a greeting of another form".to_owned())
    }
}

/// A row and the expert that it meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Of the rows that come along.
    pub row: u32,
    /// Of the layer.
    pub expert: u32,
}

/// LOAD and the head of COMPUTE: layer, count, then numbers.
pub(crate) fn encode_load(layer: usize, experts: &[usize]) -> Vec<u8> {
    let numbers = [layer, experts.len()].into_iter().chain(experts.iter().copied());
    numbers.flat_map(|n| (n as u32).to_le_bytes()).collect()
}

pub(crate) fn decode_load(bytes: &[u8]) -> Option<(usize, Vec<usize>)> {
    let mut reader = Reader(bytes);
    let (layer, count) = (reader.number()?, reader.number()? as usize);
    let experts = reader.take(count.checked_mul(4)?)?;
    reader.0.is_empty().then(|| (layer as usize, numbers(experts).map(|e| e as usize).collect()))
}

/// Everything of COMPUTE but the rows themselves, which follow.
pub(crate) fn encode_compute(layer: usize, rows: usize, pairs: &[Pair], out: &mut Vec<u8>) {
    let head = [layer, rows, pairs.len()].map(|n| n as u32);
    let pairs = pairs.iter().flat_map(|pair| [pair.row, pair.expert]);
    out.extend(head.into_iter().chain(pairs).flat_map(u32::to_le_bytes));
}

pub(crate) struct Compute<'a> {
    pub layer: usize,
    /// Every row is one of those that came.
    pub pairs: Vec<Pair>,
    /// `[rows, hidden]`
    pub values: &'a [u8],
}

pub(crate) fn decode_compute(bytes: &[u8], hidden: usize, wire: WireFormat) -> Option<Compute<'_>> {
    let mut reader = Reader(bytes);
    let [layer, rows, count] = [reader.number()?, reader.number()?, reader.number()?];
    let pairs = numbers(reader.take((count as usize).checked_mul(8)?)?).collect::<Vec<u32>>();
    let pairs: Vec<Pair> = pairs.chunks_exact(2).map(|p| Pair { row: p[0], expert: p[1] }).collect();
    let row_bytes = hidden * wire.value_bytes();
    let is_sound = reader.0.len() == (rows as usize).checked_mul(row_bytes)? && pairs.iter().all(|p| p.row < rows);
    let fits_a_reply = pairs.len().checked_mul(row_bytes)? <= FRAME_BYTES_MAX;
    (is_sound && fits_a_reply).then_some(Compute { layer: layer as usize, pairs, values: reader.0 })
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().expect("4 bytes")))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().expect("4 bytes")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_as_they_were_and_no_part_of_them_passes() {
        let greeting = Greeting { worker: 3, wire: WireFormat::Bf16, fingerprint: [7; 32] };
        let bytes = greeting.encode();
        assert_eq!(Greeting::decode(&bytes), Ok(greeting));
        let load = encode_load(4, &[9, 2, 5]);
        assert_eq!(decode_load(&load), Some((4, vec![9, 2, 5])));
        let pairs = [Pair { row: 0, expert: 200 }, Pair { row: 1, expert: 3 }, Pair { row: 0, expert: 3 }];
        let mut compute = Vec::new();
        encode_compute(5, 2, &pairs, &mut compute);
        WireFormat::F32.encode(&[1.0, -2.0, 3.5, 0.0], &mut compute);
        let sound = decode_compute(&compute, 2, WireFormat::F32).expect("sound");
        assert_eq!((sound.layer, sound.pairs.as_slice(), sound.values.len()), (5, &pairs[..], 16));
        for end in 0..compute.len() {
            assert!(decode_compute(&compute[..end], 2, WireFormat::F32).is_none(), "{end} bytes");
        }
        (0..load.len()).for_each(|end| assert!(decode_load(&load[..end]).is_none(), "{end} bytes"));
        (0..bytes.len()).for_each(|end| assert!(Greeting::decode(&bytes[..end]).is_err(), "{end} bytes"));
        compute[12] = 2; // the first pair's row, of two
        assert!(decode_compute(&compute, 2, WireFormat::F32).is_none());
    }

    #[test]
    fn crossing_is_rounding() {
        let values = [1.0, -0.0, 1.0 + 1.0 / 256.0, 1e-40, f32::MAX, f32::NEG_INFINITY];
        for wire in [WireFormat::F32, WireFormat::Bf16] {
            let (mut bytes, mut crossed, mut rounded) = (Vec::new(), values, values);
            wire.encode(&values, &mut bytes);
            assert_eq!(bytes.len(), values.len() * wire.value_bytes());
            wire.decode(&bytes, &mut crossed);
            wire.round(&mut rounded);
            assert_eq!(crossed.map(f32::to_bits), rounded.map(f32::to_bits), "{wire:?}");
        }
        let mut crossed = [0.0];
        WireFormat::F32.decode(&0.1f32.to_le_bytes(), &mut crossed);
        assert_eq!(crossed, [0.1]);
    }
}
