//! What the two sides say to each other. Numbers are little-endian; whatever arrives is checked against its length.
//!
//! ```text
//! serve            worker
//! greeting      -> answer, or a refusal
//! LOAD          -> LOADED | FAILED     experts of one layer, to be held from now on
//! KEEP          -> KEPT | FAILED       experts of one layer; others of it that no server wants may be forgotten
//! COMPUTE       -> OUTPUTS | FAILED    rows, and which expert each of them meets
//! PING          -> PONG
//! ```

use lingqu_fabric::FRAME_BYTES_MAX;

use crate::WireFormat;

/// Of what is said here; the fabric has its own.
const VERSION: u32 = 2;

pub(crate) const LOAD: u16 = 1;
pub(crate) const LOADED: u16 = 2;
pub(crate) const COMPUTE: u16 = 3;
pub(crate) const OUTPUTS: u16 = 4;
pub(crate) const PING: u16 = 5;
pub(crate) const PONG: u16 = 6;
/// The message is text, for the log.
pub(crate) const FAILED: u16 = 7;
pub(crate) const KEEP: u16 = 8;
pub(crate) const KEPT: u16 = 9;

/// Who calls whom, about what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Greeting {
    pub worker: u32,
    pub wire: WireFormat,
    /// Of the registration that is meant; 0 where workers do not register.
    pub incarnation: u64,
    /// Any number that the server keeps as long as it lives: its links belong together.
    pub server: u64,
    /// Of the checkpoint.
    pub fingerprint: [u8; 32],
}

impl Greeting {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in [VERSION, self.worker, self.wire as u32] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.incarnation.to_le_bytes());
        bytes.extend(self.server.to_le_bytes());
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
            let wire = WireFormat::ALL.into_iter().find(|w| *w as u32 == wire)?;
            let mut long = || Some(u64::from_le_bytes(reader.take(8)?.try_into().expect("8 bytes")));
            let (incarnation, server) = (long()?, long()?);
            Some(Self { worker, wire, incarnation, server, fingerprint: reader.0.try_into().ok()? })
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

/// What LOAD and KEEP say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    /// Grows with each of a server: over two links a later one may come first.
    pub number: u64,
    pub layer: usize,
    pub experts: Vec<usize>,
}

impl Order {
    /// Number, layer, count, then experts.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.number.to_le_bytes().to_vec();
        let numbers = [self.layer, self.experts.len()].into_iter().chain(self.experts.iter().copied());
        bytes.extend(numbers.flat_map(|n| (n as u32).to_le_bytes()));
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let number = u64::from_le_bytes(reader.take(8)?.try_into().expect("8 bytes"));
        let (layer, count) = (reader.number()? as usize, reader.number()? as usize);
        let experts = reader.take(count.checked_mul(4)?)?;
        let experts = numbers(experts).map(|e| e as usize).collect();
        reader.0.is_empty().then_some(Self { number, layer, experts })
    }
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
    let is_whole = reader.0.len() == (rows as usize).checked_mul(wire.row_bytes(hidden))?;
    let is_sound = is_whole && pairs.iter().all(|p| p.row < rows);
    let fits_a_reply = pairs.len().checked_mul(wire.back().row_bytes(hidden))? <= FRAME_BYTES_MAX;
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
        let greeting =
            Greeting { worker: 3, wire: WireFormat::Bf16, incarnation: 1 << 33, server: 1 << 40, fingerprint: [7; 32] };
        let bytes = greeting.encode();
        assert_eq!(Greeting::decode(&bytes), Ok(greeting));
        let order = Order { number: 7 << 40, layer: 4, experts: vec![9, 2, 5] };
        let load = order.encode();
        assert_eq!(Order::decode(&load), Some(order));
        let pairs = [Pair { row: 0, expert: 200 }, Pair { row: 1, expert: 3 }, Pair { row: 0, expert: 3 }];
        let mut compute = Vec::new();
        encode_compute(5, 2, &pairs, &mut compute);
        WireFormat::F32.encode(2, &[1.0, -2.0, 3.5, 0.0], &mut compute);
        let sound = decode_compute(&compute, 2, WireFormat::F32).expect("sound");
        assert_eq!((sound.layer, sound.pairs.as_slice(), sound.values.len()), (5, &pairs[..], 16));
        for end in 0..compute.len() {
            assert!(decode_compute(&compute[..end], 2, WireFormat::F32).is_none(), "{end} bytes");
        }
        (0..load.len()).for_each(|end| assert!(Order::decode(&load[..end]).is_none(), "{end} bytes"));
        (0..bytes.len()).for_each(|end| assert!(Greeting::decode(&bytes[..end]).is_err(), "{end} bytes"));
        compute[12] = 2; // the first pair's row, of two
        assert!(decode_compute(&compute, 2, WireFormat::F32).is_none());
    }
}
