//! Weights of a block format, repacked at load to what the kernels read.
//!
//! A panel is 16 weight rows. Its values lie in records of 256 columns, one after the other, so that a product reads
//! memory straight through. A record is made of lines of 64 bytes, each with 4 bytes of each of the 16 rows: a kernel
//! has an output in each lane and never adds lanes up. The bits are those of the file, moved as they are (four bytes of
//! a row at a time), and take the same room but for padding to whole lines. First come the scales (see [`Scales`]),
//! then the codes: the bits that make up line `i` of an octet (32 columns; value `4 i + b` of it in byte `b` of each
//! row) lie as [`Plan`] says.
//!
//! A kernel that takes octet by octet meets the lines of a record for the first time in the order in which they lie:
//! that is what a processor's own prefetching sees through. With the further bits of Q6_K behind all others, memory was
//! read at a third of the bandwidth.

mod pack;
mod repack;

use std::ops::Range;
use std::sync::Arc;

use lingqu_tensor::{Format, HostTensor};

use crate::Result;
use crate::region::Region;
use crate::simd::{CHUNK, OCTET, OCTETS, PANEL_ROWS};
use crate::weights::Packer;

pub(crate) use repack::Pack;

pub(crate) const LINE_BYTES: usize = 64;

/// How the codes of a format become values: `d * s * (c - offset) + min * m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scheme {
    /// Values of a block: 32 (a floating-point scale each) or 256 (one, and an integer for each group).
    pub block: usize,
    /// Values that share a scale and minimum, a float or an integer: 16 or 32.
    pub group: usize,
    /// What is subtracted from a code.
    pub offset: u8,
    pub mins: bool,
    pub plan: Plan,
    pub scales: Scales,
}

/// Where the bits of octet `o`, line `i` lie, in lines from the first one of the codes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Line `8 o + i`.
    Bytes,
    /// Line `4 o + i % 4`, the high nibbles for `i >= 4`.
    Halves,
    /// Line `5 o + 1 + i % 4`, the high nibbles for `i >= 4`; the fifth bit is bit `i` of line `5 o`.
    HalvesAndOne,
    /// As `Halves`, numbers of a table.
    Table,
    /// Line `4 (o - o % 2) + i`, the high nibbles for odd `o`.
    Nibbles,
    /// Line `2 i + 1` for the first two octets, `4 (o - o % 2) + 8 + i` for others, the high nibbles for odd `o`; the
    /// fifth bit is bit `o` of line `2 i`.
    NibblesAndOne,
    /// Of the 24 lines `24 (o / 4)..`, line `2 i + 1` for even `o`, `16 + i` for odd `o`, the high nibbles for
    /// `o % 4 >= 2`; two more bits are bits `2 (o % 4)` of line `2 i`.
    NibblesAndTwo,
    /// Bits `2 (o % 4)` of line `8 (o / 4) + i`.
    Pairs,
    /// Bits `2 (o % 4)` of line `2 i + 1` for the first four octets, `16 + i` for the others; the third bit is bit `o`
    /// of line `2 i`.
    PairsAndOne,
}

/// Where further bits of a code lie.
pub(crate) struct Further {
    pub line: usize,
    /// Their first bit in each byte there, and the one that it is in the code.
    pub from: usize,
    pub to: usize,
    /// The bits, at their places in the code.
    pub mask: u8,
}

impl Plan {
    /// In the order of their numbers.
    #[cfg(target_arch = "x86_64")]
    pub const ALL: [Self; 9] = [
        Plan::Bytes,
        Plan::Halves,
        Plan::HalvesAndOne,
        Plan::Table,
        Plan::Nibbles,
        Plan::NibblesAndOne,
        Plan::NibblesAndTwo,
        Plan::Pairs,
        Plan::PairsAndOne,
    ];

    /// The line with the low bits of the codes of octet `o`, line `i`, and their first bit in each byte there.
    #[inline(always)]
    pub const fn low(self, o: usize, i: usize) -> (usize, usize) {
        match self {
            Plan::Bytes => (o * 8 + i, 0),
            Plan::Halves | Plan::Table => (o * 4 + i % 4, i / 4 * 4),
            Plan::HalvesAndOne => (o * 5 + 1 + i % 4, i / 4 * 4),
            Plan::Nibbles => (o / 2 * 8 + i, o % 2 * 4),
            Plan::NibblesAndOne => (if o < 2 { 2 * i + 1 } else { o / 2 * 8 + 8 + i }, o % 2 * 4),
            Plan::NibblesAndTwo => (o / 4 * 24 + if o.is_multiple_of(2) { 2 * i + 1 } else { 16 + i }, o / 2 % 2 * 4),
            Plan::Pairs => (o / 4 * 8 + i, o % 4 * 2),
            Plan::PairsAndOne => (if o < 4 { 2 * i + 1 } else { 16 + i }, o % 4 * 2),
        }
    }

    /// Those bits, at their places in the code.
    #[inline(always)]
    pub const fn low_mask(self) -> u8 {
        match self {
            Plan::Bytes => 0xff,
            Plan::Pairs | Plan::PairsAndOne => 3,
            _ => 15,
        }
    }

    /// The other bits of the same codes.
    #[inline(always)]
    pub const fn further(self, o: usize, i: usize) -> Option<Further> {
        Some(match self {
            Plan::HalvesAndOne => Further { line: o * 5, from: i, to: 4, mask: 16 },
            Plan::NibblesAndOne => Further { line: 2 * i, from: o, to: 4, mask: 16 },
            Plan::NibblesAndTwo => Further { line: o / 4 * 24 + 2 * i, from: o % 4 * 2, to: 4, mask: 48 },
            Plan::PairsAndOne => Further { line: 2 * i, from: o, to: 2, mask: 4 },
            _ => return None,
        })
    }
}

/// What a record starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scales {
    /// f16 `[octet, row]`, then the minima alike where there are some; each padded to whole lines.
    Floats,
    /// Three lines of four bytes a row, and a line of f16 `d`, `min` (`[2, row]`): the low six bits are scales 0-3, 4-7
    /// and minima 0-3, the high two bits, from the lowest on, those of minima 4-7.
    Sixes,
    /// Four lines with scale and minimum of a group in the nibbles of a byte, and a line as above.
    Fours,
    /// Four lines of signed bytes, and a line of f16 `d`.
    Bytes16,
    /// Two lines of signed bytes, and a line of f16 `d`.
    Bytes8,
}

/// How the codes of a format become values, or `None` for formats of floats.
pub(crate) fn scheme(format: Format) -> Option<Scheme> {
    let small = |offset, mins, plan| Scheme { block: OCTET, group: OCTET, offset, mins, plan, scales: Scales::Floats };
    let large = |group, offset, mins, plan, scales| Scheme { block: CHUNK, group, offset, mins, plan, scales };
    Some(match format {
        Format::F32 | Format::F16 | Format::Bf16 | Format::Fp8E4M3 => return None,
        Format::Q8_0 => small(128, false, Plan::Bytes),
        Format::Q4_0 => small(8, false, Plan::Halves),
        Format::Q4_1 => small(0, true, Plan::Halves),
        Format::Q5_0 => small(16, false, Plan::HalvesAndOne),
        Format::Q5_1 => small(0, true, Plan::HalvesAndOne),
        Format::Iq4Nl => small(128, false, Plan::Table),
        Format::Q2K => large(16, 0, true, Plan::Pairs, Scales::Fours),
        Format::Q3K => large(16, 4, false, Plan::PairsAndOne, Scales::Bytes16),
        Format::Q4K => large(32, 0, true, Plan::Nibbles, Scales::Sixes),
        Format::Q5K => large(32, 0, true, Plan::NibblesAndOne, Scales::Sixes),
        Format::Q6K => large(16, 32, false, Plan::NibblesAndTwo, Scales::Bytes16),
        Format::Iq4Xs => large(32, 128, false, Plan::Table, Scales::Bytes8),
    })
}

impl Scheme {
    /// Lines of codes in a record of so many octets.
    const fn code_lines(&self, octets: usize) -> usize {
        match self.plan {
            Plan::Bytes => 8 * octets,
            Plan::Halves | Plan::Table | Plan::Nibbles => 4 * octets,
            Plan::HalvesAndOne => 5 * octets,
            Plan::NibblesAndOne => 4 * octets + 8,
            Plan::NibblesAndTwo => 6 * octets,
            Plan::Pairs => 2 * octets,
            Plan::PairsAndOne => 2 * octets + 8,
        }
    }

    /// Lines of integers that a record starts with.
    pub const fn integer_lines(&self) -> usize {
        match self.scales {
            Scales::Floats => 0,
            Scales::Sixes => 3,
            Scales::Fours | Scales::Bytes16 => 4,
            Scales::Bytes8 => 2,
        }
    }

    /// Where in a record of so many octets the minima of [`Scales::Floats`] start, in bytes.
    pub const fn mins_at(&self, octets: usize) -> usize {
        (octets * PANEL_ROWS * 2).next_multiple_of(LINE_BYTES)
    }

    /// Where the codes start.
    pub const fn codes_at(&self, octets: usize) -> usize {
        match self.scales {
            Scales::Floats if self.mins => 2 * self.mins_at(octets),
            Scales::Floats => self.mins_at(octets),
            _ => (self.integer_lines() + 1) * LINE_BYTES,
        }
    }

    pub const fn record_bytes(&self, octets: usize) -> usize {
        self.codes_at(octets) + self.code_lines(octets) * LINE_BYTES
    }
}

/// A repacked matrix, or one that will be ([`Pack`]), or some panels of one.
pub(crate) struct Panels {
    pub scheme: Scheme,
    cols: usize,
    panel_bytes: usize,
    /// Of a whole record.
    record_bytes: usize,
    /// Memory of all that was repacked together, and what of it is this matrix: `[panel, record]`.
    memory: Arc<Region>,
    range: Range<usize>,
    /// The number of the first panel that is here.
    first: usize,
    /// Who repacks it, which of its matrices it is, and the number of its first panel there.
    pack: Option<(Arc<Pack>, [usize; 2])>,
}

impl Panels {
    /// Repacks matrices of whole blocks into one piece of memory, now or later (`packer.later`); says of the bytes of
    /// each, once it is done, that they are not read any more.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`]; where it is done now, [`BackendError::Tensor`] for a scale that is NaN or
    /// infinite.
    ///
    /// [`BackendError::OutOfMemory`]: lingqu_backend::BackendError::OutOfMemory
    /// [`BackendError::Tensor`]: lingqu_backend::BackendError::Tensor
    pub fn pack(packer: Packer<'_>, tensors: &[&HostTensor]) -> Result<Vec<Self>> {
        let Packer { team, regions, later } = packer;
        let pack = Pack::new(regions, tensors)?;
        let stacked = pack.stacked().expect("nothing is done");
        match later {
            None => _ = pack.run(team, None)?,
            Some(later) => later.add(&pack),
        }
        let of = stacked.iter().enumerate().map(|(i, of)| Self {
            scheme: of.scheme,
            cols: of.tensor.cols,
            panel_bytes: of.panel_bytes,
            record_bytes: of.scheme.record_bytes(OCTETS),
            memory: pack.memory().clone(),
            range: of.at..of.at + of.panels * of.panel_bytes,
            first: 0,
            pack: later.is_some().then(|| (pack.clone(), [i, of.first])),
        });
        Ok(of.collect())
    }

    /// Whether some of these panels must be repacked for the moment ([`Panels::part`]) before they are read.
    pub fn is_pending(&self, panels: &Range<usize>) -> bool {
        self.pack.as_ref().is_some_and(|(pack, [_, first])| !pack.has(first + panels.end))
    }

    /// Bytes of a panel.
    pub fn panel_bytes(&self) -> usize {
        self.panel_bytes
    }

    /// Some panels of a matrix that is not repacked yet, in memory that is lent; none else may have it. `None` where
    /// they are repacked.
    ///
    /// # Errors
    /// [`BackendError::Tensor`](lingqu_backend::BackendError::Tensor) for a scale that is NaN or infinite.
    pub fn part(&self, panels: Range<usize>, memory: &mut Arc<Region>) -> Result<Option<Self>> {
        let Some((pack, [i, _])) = self.pack.as_ref() else { return Ok(None) };
        let Some(stacked) = pack.stacked() else { return Ok(None) };
        let len = panels.len() * self.panel_bytes;
        let out = &mut Arc::get_mut(memory).expect("nobody else has it")[..len];
        for (number, out) in panels.clone().zip(out.chunks_exact_mut(self.panel_bytes)) {
            if !stacked[*i].pack(number, out) {
                stacked[*i].tensor.check_finite_scales()?;
            }
        }
        let Self { scheme, cols, panel_bytes, record_bytes, .. } = *self;
        let (memory, range, first) = (memory.clone(), 0..len, panels.start);
        Ok(Some(Self { scheme, cols, panel_bytes, record_bytes, memory, range, first, pack: None }))
    }

    pub fn bytes(&self) -> usize {
        self.range.len()
    }

    /// Panels of made-up records.
    #[cfg(test)]
    pub fn of_records(scheme: Scheme, cols: usize, records: &[u8]) -> Self {
        let mut bytes = crate::region::Regions::default().take("made-up panels", records.len()).unwrap();
        bytes.copy_from_slice(records);
        let (panel_bytes, record_bytes) = (panel_bytes(&scheme, cols), scheme.record_bytes(OCTETS));
        assert!(records.len().is_multiple_of(panel_bytes));
        let (memory, range) = (Arc::new(bytes), 0..records.len());
        Self { scheme, cols, panel_bytes, record_bytes, memory, range, first: 0, pack: None }
    }

    /// Records of each panel.
    pub fn records(&self) -> usize {
        self.cols.div_ceil(CHUNK)
    }

    /// Records of each panel that have all 256 columns; at most one more follows.
    pub fn whole_records(&self) -> usize {
        self.cols / CHUNK
    }

    /// Lines of a whole record.
    pub fn record_lines(&self) -> usize {
        self.record_bytes / LINE_BYTES
    }

    /// The number of the first panel that is here.
    pub fn start(&self) -> usize {
        self.first
    }

    /// The number after that of the last panel that is here.
    pub fn end(&self) -> usize {
        self.first + self.range.len().checked_div(self.panel_bytes).unwrap_or(0)
    }

    #[inline]
    pub fn record(&self, panel: usize, number: usize) -> Record<'_> {
        let start = number * CHUNK;
        let octets = (self.cols - start).min(CHUNK) / OCTET;
        let len = if octets == OCTETS { self.record_bytes } else { self.scheme.record_bytes(octets) };
        let at = (panel - self.first) * self.panel_bytes + number * self.record_bytes;
        Record { scheme: &self.scheme, bytes: &self.memory[self.range.clone()][at..at + len], octets, start }
    }

    /// Where a record lies, which may be beyond the panel: then in the one that follows after so many.
    #[inline]
    pub fn ahead(&self, panel: usize, number: usize, side_by_side: usize) -> *const u8 {
        let records = self.records();
        let (panel, number) = if number < records { (panel, number) } else { (panel + side_by_side, number - records) };
        let at = (panel - self.first) * self.panel_bytes + number * self.record_bytes;
        self.memory.as_ptr().wrapping_add(self.range.start + at)
    }
}

/// A record of a panel.
#[derive(Clone, Copy)]
pub(crate) struct Record<'a> {
    pub scheme: &'a Scheme,
    /// As many as the scheme says for these octets.
    pub bytes: &'a [u8],
    /// 8, or fewer in the last of small blocks.
    pub octets: usize,
    /// Its first column.
    pub start: usize,
}

fn panel_bytes(scheme: &Scheme, cols: usize) -> usize {
    let rest = match cols % CHUNK / OCTET {
        0 => 0,
        octets => scheme.record_bytes(octets),
    };
    cols / CHUNK * scheme.record_bytes(OCTETS) + rest
}

/// The table of IQ4, plus 128.
pub(crate) const IQ4_OFFSET: [u8; 16] = {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = lingqu_tensor::quant::IQ4_VALUES[i] as u8 ^ 0x80;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use lingqu_backend::BackendError;

    use super::*;
    use crate::region::Regions;
    use crate::team::Team;
    use crate::testing;
    use crate::weights::Later;

    #[test]
    fn a_scale_that_is_no_number_is_refused_by_name() {
        let (team, regions) = (&Team::new(2).unwrap(), &Regions::default());
        for (format, at) in [(Format::Q4K, 2), (Format::Q6K, 208), (Format::Q5_1, 2), (Format::Q8_0, 0)] {
            let good = testing::weights(3, format, [40, 512]);
            let mut bad = testing::weights(4, format, [40, 512]);
            let mut data = bad.data.as_slice().to_vec();
            let row = 33 * bad.row_bytes();
            data[row + at..row + at + 2].copy_from_slice(&[0x01, 0xfc]);
            bad.data = data.into();
            bad.name = "blk.0.bad".into();
            let refused = |error: Option<BackendError>| {
                let error = error.expect("a broken scale").to_string();
                assert!(error.contains("blk.0.bad") && error.contains("row 33"), "{format}: {error}");
            };
            let packer = Packer { team, regions, later: None };
            assert_eq!(Panels::pack(packer, &[&good, &good]).unwrap().len(), 2);
            refused(Panels::pack(packer, &[&good, &bad]).err());
            // Later: by who needs the panel, and by who repacks it, before anybody can read it.
            let later = Later::default();
            let packed = Panels::pack(Packer { later: Some(&later), ..packer }, &[&good, &bad]).unwrap();
            let mut memory = Arc::new(regions.take("panels", packed[1].panel_bytes()).unwrap());
            assert!(packed[1].part(1..2, &mut memory).unwrap().is_some());
            refused(packed[1].part(2..3, &mut memory).err());
            assert!(packed[0].part(2..3, &mut memory).unwrap().is_some());
            let a_minute = Instant::now() + Duration::from_secs(60);
            refused(later.settle(team, a_minute).err());
        }
    }
}
