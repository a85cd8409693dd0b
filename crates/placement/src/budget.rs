//! How many copies of each layer every worker may hold.

use crate::{PlacementError, PlacementInput};

/// Copies that each worker holds of each layer, `[layers][workers]`; a layer's add up to its experts and spare copies.
///
/// Workers get bytes by their speed as far as their memory goes, and of every layer about the same part: a layer is as
/// slow as its busiest worker, and a worker's time depends on the experts it reads as well as on the rows it gets.
pub(crate) fn quotas(input: &PlacementInput) -> Result<Vec<Vec<usize>>, PlacementError> {
    let spare = input.spare_copies();
    let copies = (input.experts + spare) as u64;
    let needed_bytes: u64 = input.expert_bytes.iter().map(|bytes| bytes * copies).sum();
    let budget = byte_budgets(input, needed_bytes as f64);
    let mut free: Vec<u64> = input.workers.iter().map(|w| w.memory_bytes).collect();
    let mut unspent = budget.clone();

    // The largest first, while every worker has room: what is left over of it then holds small ones.
    let mut order: Vec<usize> = (0..input.expert_bytes.len()).filter(|&l| input.expert_bytes[l] > 0).collect();
    order.sort_by_key(|&layer| std::cmp::Reverse(input.expert_bytes[layer]));
    let mut quotas = vec![vec![0; input.workers.len()]; input.expert_bytes.len()];
    let mut missing_bytes = 0;
    for layer in order {
        let bytes = input.expert_bytes[layer];
        for copy in 0..copies {
            let roomy = (0..free.len()).filter(|&w| free[w] >= bytes && quotas[layer][w] < input.experts);
            let part = |w: usize| if budget[w] > 0.0 { unspent[w] / budget[w] } else { f64::NEG_INFINITY };
            // Nobody makes up for one layer's lack in another, as long as somebody else has room.
            let key = |w: usize| ((quotas[layer][w] as f64) < copies as f64 * budget[w] / needed_bytes as f64, part(w));
            // The first of equals.
            let Some(worker) = roomy.reduce(|best, w| if key(w) > key(best) { w } else { best }) else {
                missing_bytes += (copies - copy) * bytes;
                break;
            };
            quotas[layer][worker] += 1;
            free[worker] -= bytes;
            unspent[worker] -= bytes as f64;
        }
    }
    if missing_bytes == 0 {
        return Ok(quotas);
    }
    Err(PlacementError::TooLittleMemory {
        needed_bytes,
        spare_bytes: input.expert_bytes.iter().map(|bytes| bytes * spare as u64).sum(),
        memory_bytes: input.workers.iter().fold(0, |sum, w| sum.saturating_add(w.memory_bytes)),
        workers: input.workers.len(),
        missing_bytes,
    })
}

/// Divides `needed` bytes by speed, within each worker's memory.
fn byte_budgets(input: &PlacementInput, needed: f64) -> Vec<f64> {
    let memory = |w: usize| input.workers[w].memory_bytes as f64;
    let speed = |w: usize| input.workers[w].speed;
    let mut order: Vec<usize> = (0..input.workers.len()).collect();
    order.sort_by(|&a, &b| (memory(a) / speed(a)).total_cmp(&(memory(b) / speed(b))));
    let (mut left, mut speeds) = (needed, input.speeds().iter().sum::<f64>());
    let mut budgets = vec![0.0; input.workers.len()];
    for worker in order {
        budgets[worker] = memory(worker).min(left * speed(worker) / speeds);
        left -= budgets[worker];
        speeds -= speed(worker);
    }
    budgets
}
