//! Placements of random models on random workers: whole, within memory, balanced, and safe to move between.

use std::collections::BTreeSet;

use lingqu_placement::{
    Move, Placement, PlacementError, PlacementInput, RebalanceGoal, Spot, Worker, WorkerId, moves, place, rebalance,
    without,
};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// Sizes, loads and devices. Memory is what all copies need times `slack`, divided unevenly.
fn inputs() -> impl Strategy<Value = PlacementInput> {
    let worker = (1_u64..=4, prop_oneof![Just(1.0), 0.25_f64..4.0]);
    let shape = (1_usize..=24, prop::collection::vec(0_u64..=3, 1..=4), prop::collection::vec(worker, 1..=9));
    (shape, 0.0_f64..1.0, 1.0_f64..1.8, any::<Option<u64>>()).prop_map(
        |((experts, sizes, devices), more, slack, seed)| {
            let expert_bytes: Vec<u64> = sizes.into_iter().map(|size| size * 10).collect();
            let one_each = expert_bytes.iter().sum::<u64>() * experts as u64;
            let parts: u64 = devices.iter().map(|d| d.0).sum();
            let memory = |part: u64| (one_each as f64 * slack * part as f64 / parts as f64) as u64 + 60;
            let workers = devices.iter().zip(0..);
            let row = |layer: u64, expert: u64, seed: u64| {
                let x = (seed ^ (layer * 1000 + expert)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
                // From cold to hot over three powers of ten, some never used.
                if x.is_multiple_of(7) { 0 } else { 10_000_000 / (1 + x % 1000) }
            };
            let load = |seed: u64| {
                let layers = (0..expert_bytes.len() as u64).zip(&expert_bytes);
                let rows = |layer: u64| (0..experts as u64).map(|e| row(layer, e, seed)).collect();
                layers.map(|(layer, &bytes)| if bytes == 0 { vec![] } else { rows(layer) }).collect()
            };
            PlacementInput {
                experts,
                load: seed.map(load),
                workers: workers
                    .map(|(&(part, speed), id)| Worker { id: WorkerId(id * 3), memory_bytes: memory(part), speed })
                    .collect(),
                redundancy: more,
                expert_bytes,
            }
        },
    )
}

/// Follows `steps` from `old` with the least code there is, and returns who holds what in the end.
fn follow(input: &PlacementInput, old: &Placement, steps: &[Move], lost: &[WorkerId]) -> BTreeSet<Spot> {
    let mut held: BTreeSet<Spot> = old.spots().filter(|spot| !lost.contains(&spot.worker)).collect();
    let alive = |held: &BTreeSet<Spot>| held.iter().map(|s| (s.layer, s.expert)).collect::<BTreeSet<_>>();
    let mut least = alive(&held);
    for step in steps {
        match *step {
            Move::Load(spot) => assert!(held.insert(spot), "{spot:?} is loaded twice"),
            Move::Drop(spot) => assert!(held.remove(&spot), "{spot:?} is not there"),
        }
        let now = alive(&held);
        assert!(now.is_superset(&least), "{step:?} dropped the last copy");
        least = now;
        for worker in &input.workers {
            let bytes: u64 = held.iter().filter(|s| s.worker == worker.id).map(|s| input.expert_bytes[s.layer]).sum();
            assert!(bytes <= worker.memory_bytes, "{step:?}: {} holds {bytes}", worker.id);
        }
    }
    held
}

/// The same workers with another load: as if another crowd had come.
fn later(input: &PlacementInput) -> PlacementInput {
    let mut later = input.clone();
    let turn = |rows: &mut Vec<u64>| {
        let half = rows.len() / 2;
        rows.rotate_left(half);
    };
    later.load.iter_mut().flatten().for_each(turn);
    later
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        rng_seed: RngSeed::Fixed(7),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_expert_is_placed_and_balanced(input in inputs()) {
        match place(&input) {
            Ok(placement) => {
                prop_assert_eq!(placement.validate(&input), Ok(()));
                prop_assert_eq!(&place(&input).unwrap(), &placement);
                check_balance(&input, &placement)?;
            }
            Err(PlacementError::TooLittleMemory { needed_bytes, memory_bytes, missing_bytes, .. }) => {
                // What cannot be packed in whole experts may be missing although the sum would do, more so where sizes
                // differ, and nobody can use memory for more than one copy of everything.
                let all = input.expert_bytes.iter().sum::<u64>() * input.experts as u64;
                let usable: u64 = input.workers.iter().map(|w| w.memory_bytes.min(all)).sum();
                let largest = input.expert_bytes.iter().max().unwrap() * input.workers.len() as u64;
                let sizes: BTreeSet<u64> = input.expert_bytes.iter().copied().filter(|&b| b > 0).collect();
                prop_assert!(missing_bytes > 0 && (sizes.len() > 1 || needed_bytes + largest > usable));
                prop_assert!(missing_bytes >= needed_bytes.saturating_sub(memory_bytes));
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn moves_are_safe_at_each_step(input in inputs()) {
        let (Ok(old), Ok(new)) = (place(&input), place(&later(&input))) else { return Ok(()) };
        match moves(&input, &old, &new) {
            Ok(steps) => prop_assert_eq!(follow(&input, &old, &steps, &[]), new.spots().collect()),
            // Only where no worker can take even one more expert, or sizes differ.
            Err(PlacementError::NoSafeOrder { .. }) => {
                let free = |w: &Worker| w.memory_bytes - new.bytes_of(w.id, &input.expert_bytes);
                let sizes: BTreeSet<u64> = input.expert_bytes.iter().copied().filter(|&b| b > 0).collect();
                let has_room = input.workers.iter().any(|w| free(w) >= *sizes.last().unwrap());
                prop_assert!(!has_room || sizes.len() > 1);
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn rebalancing_keeps_its_bounds(input in inputs(), loads_max in 0_usize..12) {
        let Ok(old) = place(&input) else { return Ok(()) };
        let now = later(&input);
        let goal = RebalanceGoal { imbalance_wanted: 1.05, loads_max };
        let found = rebalance(&now, &old, goal).unwrap();
        prop_assert_eq!(found.placement.validate(&now), Ok(()));
        prop_assert!(found.loads <= loads_max);
        prop_assert!(found.imbalance_after <= found.imbalance_before + 1e-3, "{:?}", found);
        if let Ok(steps) = moves(&now, &old, &found.placement) {
            prop_assert_eq!(follow(&now, &old, &steps, &[]), found.placement.spots().collect());
        }
    }

    #[test]
    fn a_loss_is_repaired_or_refused(input in inputs(), which in any::<prop::sample::Index>()) {
        let Ok(old) = place(&input) else { return Ok(()) };
        let lost = [input.workers[which.index(input.workers.len())].id];
        let one_copy: u64 = input.expert_bytes.iter().sum::<u64>() * input.experts as u64;
        let left = || input.workers.iter().filter(|w| !lost.contains(&w.id));
        match without(&input, &old, &lost) {
            Ok(loss) => {
                let only_there = |&(layer, expert): &(usize, usize)| old.layers[layer].copies[expert] == lost;
                prop_assert!(loss.orphans.iter().all(only_there));
                prop_assert_eq!(loss.placement.validate(&input), Ok(()));
                let held = follow(&input, &old, &loss.repairs, &lost);
                prop_assert!(held.iter().all(|spot| spot.worker != lost[0]));
                prop_assert_eq!(held, loss.placement.spots().collect());
            }
            Err(PlacementError::TooLittleMemory { missing_bytes, .. }) => {
                let whole = left().map(|w| w.memory_bytes).sum::<u64>();
                let largest = input.expert_bytes.iter().max().unwrap() * left().count() as u64;
                prop_assert!(missing_bytes > 0 && one_copy + largest > whole);
            }
            Err(other) => prop_assert_eq!(left().count(), 0, "{}", other),
        }
    }
}

fn zipf(experts: usize, turn: usize) -> Vec<u64> {
    // Ranks spread over the experts by an odd stride, so that the hot ones are not neighbours.
    (0..experts).map(|e| 1_000_000_000 / ((e * 97 + turn * 13) % experts + 1) as u64).collect()
}

/// R1's shape: 58 layers of 256 experts, 10% of them twice, on 32 workers.
fn large(turn: usize) -> PlacementInput {
    PlacementInput {
        experts: 256,
        expert_bytes: [vec![0; 3], vec![44; 58]].concat(),
        workers: (0..32).map(|id| Worker { id: WorkerId(id), memory_bytes: 24_000, speed: 1.0 }).collect(),
        load: Some((0..61).map(|layer| zipf(256, layer + turn)).collect()),
        redundancy: 0.10,
    }
}

#[test]
fn few_moves_follow_a_load_that_drifts() {
    let check = |turn: usize, loads_max: usize, imbalance: f64| {
        let (before, now) = (large(0), large(turn));
        let old = place(&before).unwrap();
        let goal = RebalanceGoal { imbalance_wanted: 1.10, loads_max };
        let found = rebalance(&now, &old, goal).unwrap();
        let summary = (found.loads, found.imbalance_before, found.imbalance_after);
        assert!(found.loads <= loads_max && found.imbalance_after <= imbalance, "{turn}: {summary:?}");
        let steps = moves(&now, &old, &found.placement).unwrap();
        assert_eq!(follow_fast(&old, &steps), found.placement.spots().collect(), "{turn}");
        println!("{turn}: {summary:?}, {} moves", steps.len());
    };
    check(0, 0, 1.10);
    check(1, 2000, 1.10);
    check(1, 100, 6.0);
}

fn follow_fast(old: &Placement, steps: &[Move]) -> BTreeSet<Spot> {
    let mut held: BTreeSet<Spot> = old.spots().collect();
    for step in steps {
        match step {
            Move::Load(spot) => assert!(held.insert(*spot)),
            Move::Drop(spot) => assert!(held.remove(spot)),
        }
    }
    held
}

#[test]
fn a_swap_without_room_goes_through_a_third_place() {
    let spread = |on: [&[u32]; 3]| {
        let copies: Vec<Vec<WorkerId>> = on.iter().map(|on| on.iter().map(|&w| WorkerId(w)).collect()).collect();
        let shares = copies.iter().map(|on| vec![65536 / on.len() as u32; on.len()]).collect();
        Placement { layers: vec![lingqu_placement::LayerPlacement { copies, shares }] }
    };
    let check = |memory: [u64; 3], old: [&[u32]; 3], new: [&[u32]; 3], expected: Option<usize>| {
        let workers =
            memory.into_iter().zip(0..).map(|(m, id)| Worker { id: WorkerId(id), memory_bytes: m, speed: 1.0 });
        let input = PlacementInput {
            experts: 3,
            expert_bytes: vec![10],
            workers: workers.collect(),
            load: None,
            redundancy: 0.0,
        };
        let (old, new) = (spread(old), spread(new));
        match (moves(&input, &old, &new), expected) {
            (Ok(steps), Some(count)) => {
                assert_eq!(follow(&input, &old, &steps, &[]), new.spots().collect());
                assert_eq!(steps.len(), count, "{steps:?}");
            }
            (found, expected) => assert_eq!(found.ok().map(|s| s.len()), expected, "{memory:?}"),
        }
    };
    check([20, 20, 20], [&[0], &[1], &[2]], [&[1], &[0], &[2]], Some(4));
    // Full but for one place: one more load and one more drop.
    check([10, 10, 20], [&[0], &[1], &[2]], [&[1], &[0], &[2]], Some(6));
    // A second copy lends its room and comes back.
    check([10, 10, 20], [&[0], &[1], &[2]], [&[1, 2], &[0], &[2]], Some(5));
    check([10, 10, 10], [&[0], &[1], &[2]], [&[1], &[0], &[2]], None);
}

#[test]
fn rows_follow_shares_and_the_living() {
    let input = PlacementInput { expert_bytes: vec![44], load: Some(vec![zipf(256, 0)]), ..large(0) };
    let layer = &place(&input).unwrap().layers[0];
    let check = |lost: &[WorkerId]| {
        for expert in 0..256 {
            let copies = &layer.copies[expert];
            let mut turns = vec![0_u32; copies.len()];
            for turn in 0..4096 {
                match layer.copy_for(expert, turn, |w| !lost.contains(&w)) {
                    Some(worker) => turns[copies.iter().position(|&w| w == worker).expect("a copy")] += 1,
                    None => assert!(copies.iter().all(|w| lost.contains(w))),
                }
            }
            let left: u32 =
                copies.iter().zip(&layer.shares[expert]).filter(|(w, _)| !lost.contains(w)).map(|c| c.1).sum();
            for (at, worker) in copies.iter().enumerate().filter(|_| left > 0) {
                let share = if lost.contains(worker) { 0 } else { layer.shares[expert][at] };
                let expected = f64::from(share) / f64::from(left) * 4096.0;
                assert!(
                    (f64::from(turns[at]) - expected).abs() < 8.0,
                    "{expert}: {turns:?} of {:?}",
                    layer.shares[expert]
                );
            }
        }
    };
    check(&[]);
    check(&[WorkerId(0), WorkerId(5), WorkerId(31)]);
}

/// For equal workers with room for all: no worker has more than twice the mean and two of the heaviest pieces.
///
/// A worker's load passes the mean by at most one piece while all have room. It can go on growing only while those
/// with less to do are full, with pieces none of which is smaller: by less than they have.
fn check_balance(input: &PlacementInput, placement: &Placement) -> Result<(), TestCaseError> {
    let first = &input.workers[0];
    if input.workers.iter().any(|w| (w.speed, w.memory_bytes) != (first.speed, first.memory_bytes)) {
        return Ok(());
    }
    for layer in (0..placement.layers.len()).filter(|&l| input.expert_bytes[l] > 0) {
        let load: Vec<f64> = match &input.load {
            Some(load) if load[layer].iter().any(|&r| r > 0) => load[layer].iter().map(|&r| r as f64).collect(),
            _ => vec![1.0; input.experts],
        };
        let mean = load.iter().sum::<f64>() / input.workers.len() as f64;
        let piece = |e: usize| load[e] / placement.layers[layer].copies[e].len() as f64;
        let heaviest = (0..input.experts).map(piece).fold(0.0, f64::max);
        let busiest = placement.worker_loads(input, layer).into_iter().fold(0.0, f64::max);
        prop_assert!(busiest <= (2.0 * mean + 2.0 * heaviest) * 1.001, "layer {}: {} of {}", layer, busiest, mean);
    }
    Ok(())
}
