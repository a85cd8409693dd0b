//! A plan as people and programs read it.

use std::fmt::Write as _;

use lingqu_placement::WorkerId;
use serde_json::{Value, json as object};

use crate::error::gb;
use crate::{NodeMemory, Plan, Prediction};

/// Tables; with `verbose` also every expert.
pub fn text(plan: &Plan, verbose: bool) -> String {
    let mut out = String::new();
    let line = |out: &mut String, name: &str, value: String| {
        let _ = writeln!(out, "{name:<14}{value}");
    };
    let (inventory, workload) = (&plan.inventory, &plan.workload);
    let billions = inventory.parameters() as f64 / 1e9;
    let total = gb(inventory.total_bytes());
    line(&mut out, "model", format!("{}: {billions:.1} billion parameters", inventory.config.name));
    line(
        &mut out,
        "weights",
        format!("{}: {total}, {} of them not routed", inventory.source, gb(inventory.resident_bytes())),
    );
    let (sequences, context) = (workload.sequences, workload.context_tokens);
    line(
        &mut out,
        "workload",
        format!("{sequences} sequences of {context} tokens; prompts {} rows at a time", workload.prefill_rows),
    );
    experts(plan, &mut out);
    memory(plan, &mut out);
    traffic(plan, &mut out);
    out += "\n";
    prediction("decode", &plan.decode, &mut out);
    let each = plan.decode.tokens_per_s() / sequences as f64;
    let _ = writeln!(out, "{:<14}{each:.1} tokens/s to each sequence", "");
    prediction("prefill", &plan.prefill, &mut out);
    if verbose {
        every_expert(plan, &mut out);
    }
    out
}

fn experts(plan: &Plan, out: &mut String) {
    let Some(layer) = plan.placement.layers.iter().find(|layer| !layer.is_dense()) else { return };
    let copies: usize = layer.copies.iter().map(Vec::len).sum();
    let layers = plan.placement.layers.iter().filter(|layer| !layer.is_dense()).count();
    let over = (plan.imbalance - 1.0) * 100.0;
    let _ = writeln!(
        out,
        "{:<14}{} in each of {layers} layers, {} more copies; the busiest worker has {over:.1}% over the mean",
        "experts",
        layer.copies.len(),
        copies - layer.copies.len(),
    );
}

fn memory(plan: &Plan, out: &mut String) {
    const HEADS: [&str; 8] = ["node", "memory", "not routed", "experts", "KV cache", "activations", "reserve", "left"];
    *out += "\n";
    for (at, head) in HEADS.iter().enumerate() {
        let _ = if at == 0 { write!(out, "{head:<16}") } else { write!(out, "{head:>13}") };
    }
    *out += "\n";
    // Neighbours that differ in a few experts at most go in one line: that of the fullest.
    let same = |a: &NodeMemory, b: &NodeMemory| {
        (a.memory_bytes, a.resident_bytes, a.kv_bytes) == (b.memory_bytes, b.resident_bytes, b.kv_bytes)
    };
    for group in plan.memory.chunk_by(same) {
        let fullest = group.iter().min_by_key(|node| node.headroom_bytes()).expect("a group has nodes");
        let (first, last) = (&group[0], &group[group.len() - 1]);
        let name = match group.len() {
            1 => first.node.clone(),
            _ => format!("{} .. {}", first.node, last.node.rsplit('-').next().unwrap_or_default()),
        };
        let _ = write!(out, "{name:<16}");
        for bytes in [
            fullest.memory_bytes,
            fullest.resident_bytes,
            fullest.expert_bytes,
            fullest.kv_bytes,
            fullest.activation_bytes,
            fullest.reserve_bytes,
            fullest.headroom_bytes(),
        ] {
            let _ = write!(out, "{:>13}", gb(bytes));
        }
        *out += "\n";
    }
}

fn traffic(plan: &Plan, out: &mut String) {
    for (at, traffic) in plan.traffic.iter().enumerate() {
        if at == 0 {
            let _ = writeln!(
                out,
                "\ntraffic       a token meets {:.2} workers elsewhere in a layer with {:.2} pairs; {:.1} messages a \
                 layer and step",
                traffic.workers, traffic.pairs, traffic.messages
            );
        }
        let layers = traffic.layers as f64;
        let kb = |bytes: f64| format!("{:.1} KB", bytes / 1e3);
        let _ = writeln!(
            out,
            "  {:<12}{} out and {} back a token and layer (least back: {}); {:.2} MB a token",
            traffic.wire.name(),
            kb(traffic.out_bytes),
            kb(traffic.back_bytes),
            kb(traffic.back_bytes_least),
            layers * (traffic.out_bytes + traffic.back_bytes) / 1e6,
        );
    }
}

fn prediction(name: &str, prediction: &Prediction, out: &mut String) {
    let spent = &prediction.spent;
    let ms = spent.total_s() * 1e3;
    let shares: Vec<String> = spent
        .ranking()
        .iter()
        .filter(|(_, seconds)| *seconds > 0.005 * spent.total_s())
        .map(|(what, seconds)| format!("{what} {:.0}%", 100.0 * seconds / spent.total_s()))
        .collect();
    let halves = match prediction.halved_layers {
        0 => String::new(),
        layers => format!(" (in {layers} layers the batch goes in halves)"),
    };
    let tokens = prediction.tokens_per_s();
    let _ = writeln!(
        out,
        "{name:<14}{tokens:.1} tokens/s, a step of {} rows takes {ms:.2} ms{halves}: bound by {}",
        prediction.rows,
        shares.join(", ")
    );
}

fn every_expert(plan: &Plan, out: &mut String) {
    for (layer, placed) in plan.placement.layers.iter().enumerate().filter(|(_, placed)| !placed.is_dense()) {
        let _ = writeln!(out, "\nlayer {layer}");
        for (at, device) in plan.fleet.devices.iter().enumerate() {
            let experts = placed.experts_of(WorkerId(at as u32));
            if !experts.is_empty() {
                let list: Vec<String> = experts.iter().map(usize::to_string).collect();
                let _ = writeln!(out, "  {:<14}{}", device.name, list.join(" "));
            }
        }
    }
}

/// Everything, in bytes and seconds.
pub fn json(plan: &Plan) -> Value {
    let (inventory, workload) = (&plan.inventory, &plan.workload);
    let nodes: Vec<Value> = plan.memory.iter().map(node).collect();
    let traffic = plan.traffic.iter().map(|t| {
        object!({"wire": t.wire.name(), "layers": t.layers, "workers": t.workers, "pairs": t.pairs,
            "out_bytes": t.out_bytes, "back_bytes": t.back_bytes, "back_bytes_least": t.back_bytes_least,
            "messages_per_layer_and_step": t.messages})
    });
    let layers = plan.placement.layers.iter().map(|layer| {
        let ids = |on: &Vec<WorkerId>| on.iter().map(|w| plan.fleet.devices[w.0 as usize].name.clone()).collect();
        let copies: Vec<Vec<String>> = layer.copies.iter().map(ids).collect();
        object!({"copies": copies, "shares": layer.shares})
    });
    object!({
        "model": {"name": inventory.config.name, "weights": inventory.source, "parameters": inventory.parameters(),
            "bytes": inventory.total_bytes(), "resident_bytes": inventory.resident_bytes()},
        "workload": {"sequences": workload.sequences, "context_tokens": workload.context_tokens,
            "prefill_rows": workload.prefill_rows, "kv_value_bytes": workload.kv_value_bytes,
            "wire": workload.wire.name(), "redundancy": workload.redundancy},
        "nodes": nodes, "traffic": traffic.collect::<Vec<_>>(), "imbalance": plan.imbalance,
        "decode": speed(&plan.decode), "prefill": speed(&plan.prefill), "placement": layers.collect::<Vec<_>>(),
    })
}

fn node(m: &NodeMemory) -> Value {
    object!({"name": m.node, "memory_bytes": m.memory_bytes, "resident_bytes": m.resident_bytes,
        "expert_bytes": m.expert_bytes, "experts": m.experts, "kv_bytes": m.kv_bytes, "sequences": m.sequences,
        "activation_bytes": m.activation_bytes, "reserve_bytes": m.reserve_bytes,
        "headroom_bytes": m.headroom_bytes()})
}

fn speed(p: &Prediction) -> Value {
    let s = &p.spent;
    object!({"tokens_per_s": p.tokens_per_s(), "rows": p.rows, "step_s": s.total_s(), "bound": s.bound(),
        "read_s": s.read_s, "compute_s": s.compute_s, "link_s": s.link_s, "latency_s": s.latency_s,
        "fixed_s": s.fixed_s, "halved_layers": p.halved_layers})
}
