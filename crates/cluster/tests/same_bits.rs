//! A cluster's logits against those of one process, bit for bit: whoever holds which expert.

mod support;

use std::sync::Arc;

use lingqu_backend::{Backend, Exchange};
use lingqu_backend_cpu::Isa;
use lingqu_cluster::{PairExchange, Placement, WireFormat, WorkerId};
use lingqu_model::Experts;
use lingqu_placement::{LayerPlacement, SHARE_WHOLE};
use lingqu_testkit::rng::Rng;
use support::*;

const MODELS: [&str; 4] = ["default", "deepseek-v2-lite-bf16", "deepseek-v3-fp8", "deepseek2-v3-q4_k_m.gguf"];

#[test]
fn any_number_of_workers_gives_the_bits_of_one_process() {
    for (isa, models) in [(Some(Isa::Portable), &MODELS[1..3]), (None, &MODELS[..])] {
        let backend = cpu(isa);
        for model in models {
            let package = package(model);
            let expected = run(&package, &backend, Experts::Here);
            for (workers, redundancy) in [(1, 0.0), (2, 0.0), (2, 1.0), (4, 0.0), (4, 0.3), (4, 3.0)] {
                let addresses = start_workers(&package, &backend, workers);
                let exchange = start(&config(&addresses, redundancy), &package, &backend).expect("a cluster");
                let what = format!("{model}, {isa:?}: {workers} workers, redundancy {redundancy}");
                assert!(run(&package, &backend, behind(&exchange)) == expected, "{what}");
                assert_eq!(exchange.traffic().fenced, 0, "{what}");
            }
        }
    }
}

/// Workers that compute with other instructions than the serving process, and than each other.
#[test]
fn workers_may_have_other_instructions() {
    let package = package("default");
    let [portable, best] = [cpu(Some(Isa::Portable)), cpu(None)];
    let workers = [&portable, &best].into_iter().zip(0..);
    let addresses: Vec<String> =
        workers.map(|(backend, id)| start_worker(shard(&package, backend), identity(&package, id))).collect();
    let exchange = start(&config(&addresses, 0.0), &package, &best).expect("a cluster");
    assert!(run(&package, &best, behind(&exchange)) == run(&package, &best, Experts::Here));
}

#[test]
fn any_placement_gives_the_bits_of_one_process() {
    let (package, backend) = (package("default"), cpu(None));
    let shape = shape(&package);
    let expected = run(&package, &backend, Experts::Here);
    let addresses = start_workers(&package, &backend, 3);
    let mut rng = Rng::new(3);
    let mut place = |who: &mut dyn FnMut(usize, &mut Rng) -> Vec<u32>| Placement {
        layers: (0..shape.expert_bytes.len())
            .map(|layer| {
                let experts = if shape.expert_bytes[layer] == 0 { 0 } else { shape.experts };
                let copies = (0..experts).map(|e| who(e, &mut rng).into_iter().map(WorkerId).collect::<Vec<_>>());
                let copies: Vec<Vec<WorkerId>> = copies.collect();
                let shares = copies.iter().map(|c| vec![SHARE_WHOLE / c.len() as u32; c.len()]).collect();
                LayerPlacement { copies, shares }
            })
            .collect(),
    };
    for (what, placement) in [
        ("all on one", place(&mut |_, _| vec![1])),
        ("in turn", place(&mut |expert, _| vec![expert as u32 % 3])),
        ("everywhere", place(&mut |_, _| vec![0, 1, 2])),
        ("the first alone on one", place(&mut |expert, _| vec![u32::from(expert > 0) * 2])),
        ("at random", place(&mut |_, rng| vec![rng.below(3) as u32])),
        (
            "at random, some twice",
            place(&mut |_, rng| {
                let first = rng.below(3) as u32;
                if rng.chance(40) { vec![first, (first + 1) % 3] } else { vec![first] }
            }),
        ),
    ] {
        let exchange = start_placed(&config(&addresses, 0.0), &package, &backend, placement);
        assert!(run(&package, &backend, behind(&exchange)) == expected, "{what}");
        assert_eq!((exchange.traffic().fenced, exchange.traffic().adopted), (0, 0), "{what}");
    }
}

/// Steps in two halves, of rows that want logits and rows that do not.
#[test]
fn halves_have_the_bits_of_one_process() {
    let backend = cpu(None);
    for model in &MODELS[..3] {
        let package = package(model);
        let expected = (run(&package, &backend, Experts::Here), mixed(&package, &backend, Experts::Here));
        for workers in [1, 3] {
            let mut config = config(&start_workers(&package, &backend, workers), 0.5);
            config.overlap_rows = 2;
            let exchange = start(&config, &package, &backend).expect("a cluster");
            let found = (run(&package, &backend, behind(&exchange)), mixed(&package, &backend, behind(&exchange)));
            assert!(found == expected, "{model}, {workers} workers");
            assert_eq!(exchange.traffic().fenced, 0, "{model}, {workers} workers");
        }
    }
}

/// A wire of few bits rounds; one process that rounds alike has the same bits.
#[test]
fn a_narrow_wire_has_the_bits_of_one_process_that_rounds_alike() {
    let (package, backend) = (package("default"), cpu(None));
    let exact = run(&package, &backend, Experts::Here);
    let alone = |wire| -> Arc<dyn Exchange> {
        let shard = shard(&package, &backend);
        Arc::new(
            PairExchange::new(Arc::clone(&backend) as Arc<dyn Backend>, shard, wire, &shape(&package))
                .expect("it fits"),
        )
    };
    assert!(run(&package, &backend, Experts::Behind(alone(WireFormat::F32))) == exact);
    for wire in [WireFormat::Bf16, WireFormat::Int8] {
        let rounded = run(&package, &backend, Experts::Behind(alone(wire)));
        assert!(rounded != exact, "rounding by {wire:?} is seen");
        let mut narrow = config(&start_workers(&package, &backend, 2), 0.0);
        narrow.wire = wire;
        let exchange = start(&narrow, &package, &backend).expect("a cluster");
        assert!(run(&package, &backend, behind(&exchange)) == rounded, "{wire:?}");
    }
}

#[test]
fn traffic_is_counted() {
    let (package, backend) = (package("default"), cpu(None));
    let shape = shape(&package);
    let exchange = start(&config(&start_workers(&package, &backend, 1), 0.0), &package, &backend).expect("a cluster");
    let rows = run(&package, &backend, behind(&exchange)).len() as u64;
    let traffic = exchange.traffic();
    let (layers, row_bytes) = (shape.expert_layers().count() as u64, 4 * shape.hidden as u64);
    assert_eq!(traffic.rows, rows * layers);
    assert_eq!(traffic.pairs, traffic.rows * shape.top_k as u64);
    assert_eq!(traffic.messages, traffic.messages_min); // one each way, one worker
    assert_eq!(traffic.bytes_min, traffic.rows * 2 * row_bytes);
    let heads = traffic.messages / 2 * 36;
    assert_eq!(traffic.bytes_received, traffic.pairs * row_bytes + heads);
    assert_eq!(traffic.bytes_sent, traffic.rows * row_bytes + traffic.pairs * 8 + traffic.messages / 2 * 12 + heads);
}
