//! What sampling needs of logits, found where they are.

use lingqu_backend::{TOP_LOGITS_MAX, TopLogits, View};

use crate::Result;
use crate::arguments::Argument;
use crate::core::{Core, Room};
use crate::driver::Address;
use crate::memory::source;

/// Logits of a block: a law of the kernels.
const PART: usize = 4096;
/// Parts of a row that the kernels can merge.
const PARTS_MAX: usize = 1024;

/// Hands out pieces of memory one after another, in 4-byte words.
struct Words(Address);

impl Words {
    fn take(&mut self, words: usize) -> Argument {
        let start = self.0;
        self.0 += (words * 4) as Address;
        Argument::Address(start)
    }
}

pub(crate) fn top_logits(core: &Core, x: View<'_>, scales: &[f32], k: usize) -> Result<TopLogits> {
    let x = source(x).flat();
    let (rows, cols) = (x.rows as usize, x.len as usize);
    assert!((1..=cols.min(TOP_LOGITS_MAX)).contains(&k), "the {k} largest of {cols}");
    assert_eq!(scales.len(), rows, "a scale for each row");
    let parts = cols.div_ceil(PART);
    assert!(parts <= PARTS_MAX, "{cols} logits");
    let mut scratch = core.scratch();
    let scales = Argument::Address(scratch.scales(core, scales)?);
    // First what comes out, then what only the kernels see.
    let [results, listed] = [rows * (2 * k + 1), rows * parts * k];
    let memory = scratch.memory(core, Room::Top, (results + 2 * listed + 2 * rows * parts) * 4)?;
    let mut room = Words(memory.address());
    let [tokens, values, sums] = [rows * k, rows * k, rows].map(|words| room.take(words));
    let [part_tokens, part_values, part_totals] = [listed, listed, 2 * rows * parts].map(|words| room.take(words));
    let asked = Argument::U32(k as u32);
    let arguments = [Argument::View(x), scales, part_tokens, part_values, part_totals, asked];
    core.launch("top_logits_parts", [parts, rows, 1], 256, &arguments)?;
    let from = [part_tokens, part_values, part_totals, scales];
    let arguments = [&from[..], &[tokens, values, sums, Argument::U32(parts as u32), asked]].concat();
    core.launch("top_logits", [rows, 1, 1], 256, &arguments)?;
    let mut found = vec![0u32; results];
    memory.read(0, &mut found).map_err(core.told("the largest logits"))?;
    let floats = |words: &[u32]| words.iter().map(|word| f32::from_bits(*word)).collect();
    let (tokens, rest) = found.split_at(rows * k);
    let (values, sums) = rest.split_at(rows * k);
    Ok(TopLogits { k, tokens: tokens.to_vec(), values: floats(values), sums: floats(sums) })
}
