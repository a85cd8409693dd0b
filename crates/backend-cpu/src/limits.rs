//! What this machine can do at most: how fast it reads memory, against which decode is measured, and how fast its
//! tiles multiply, against which prefill is.

use std::time::Instant;

use crate::isa::per_isa;
use crate::memory::Zeroed;
use crate::team::{Shares, share};
use crate::{Core, Result};

/// Runs of which the fastest counts.
const RUNS: usize = 5;
/// Streams that a thread reads side by side.
const STREAMS: usize = 8;

/// GB/s (10^9) of all threads together reading `bytes` of memory, the best of a few runs.
pub(crate) fn measure(core: &Core, bytes: usize) -> Result<f64> {
    let mut memory = Zeroed::<u8>::new("the buffer of a bandwidth measurement", &[bytes.max(1 << 20)])?;
    let len = memory.len();
    let all = Shares::new(&mut memory);
    let members = core.team.members();
    // Written first: pages that nobody wrote are all one page of zeros. Each thread writes what it will read.
    core.team.run(|member| {
        // SAFETY: the members' shares are disjoint.
        unsafe { all.part(share(len, member, members)) }.fill(1);
    });
    let mut best_s = f64::INFINITY;
    for _ in 0..RUNS {
        let start = Instant::now();
        core.team.run(|member| {
            // SAFETY: the members' shares are disjoint.
            let part = unsafe { all.part(share(len, member, members)) };
            std::hint::black_box(read_streams(core.simd, part));
        });
        best_s = best_s.min(start.elapsed().as_secs_f64());
    }
    Ok(len as f64 / best_s / 1e9)
}

/// 10^12 operations a second (a product and a sum are two) of all threads together on int8 tiles that are at hand, the
/// best of a few runs; `None` without AMX.
#[cfg(target_arch = "x86_64")]
pub(crate) fn tile_peak(core: &Core) -> Option<f64> {
    use crate::simd::{CHUNK, amx};
    const ROUNDS: u64 = 100_000;
    const OPERATIONS: f64 = (ROUNDS * 4 * 2 * 16 * 64 * 16) as f64;
    if core.simd.isa() != crate::isa::Isa::Amx {
        return None;
    }
    let once = || {
        let start = Instant::now();
        // SAFETY: the instruction set in use is AMX; the tiles are dropped at once.
        core.team.run(|_| unsafe { amx::multiply_registers(&amx::Tiles::new(CHUNK), ROUNDS) });
        start.elapsed().as_secs_f64()
    };
    let best_s = (0..RUNS).map(|_| once()).fold(f64::INFINITY, f64::min);
    Some(OPERATIONS * core.team.members() as f64 / best_s / 1e12)
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn tile_peak(_: &Core) -> Option<f64> {
    None
}

per_isa! {
    /// The sum of all 64-bit words, read in 8 streams at once.
    fn read_streams(bytes: &[u8]) -> u64 = read_streams_plain
}

#[inline(always)]
fn read_streams_plain(bytes: &[u8]) -> u64 {
    let part = bytes.len() / STREAMS / 128 * 128;
    let mut sums = [[0u64; 8]; STREAMS];
    for at in (0..part).step_by(128) {
        for (stream, sums) in sums.iter_mut().enumerate() {
            let lines: &[u8; 128] = bytes[stream * part + at..].first_chunk().expect("within the stream");
            for line in lines.as_chunks::<64>().0 {
                for j in 0..8 {
                    let word: &[u8; 8] = line[j * 8..].first_chunk().expect("within the line");
                    sums[j] = sums[j].wrapping_add(u64::from_le_bytes(*word));
                }
            }
        }
    }
    sums.as_flattened().iter().fold(0, |sum: u64, &s| sum.wrapping_add(s))
}
