//! Plans that fit, plans that do not, and what is wrong with a file.

use lingqu_model::ModelConfig;
use lingqu_plan::{Fleet, Inventory, Plan, PlanError, Weights, Workload, json, text};

fn inventory(name: &str, weights: &str) -> Inventory {
    let path = format!("{}/../../models/{name}/config.json", env!("CARGO_MANIFEST_DIR"));
    let config = ModelConfig::from_config_json(&std::fs::read_to_string(path).unwrap(), name).unwrap();
    Inventory::from_config(&config, weights.parse::<Weights>().unwrap()).unwrap()
}

/// One K100_AI: 64 GB, 896 GB/s and 196 / 392 T by its data sheet, of which kernels are taken to reach 3/4 and 1/2.
fn dcus(count: usize) -> Fleet {
    let text = format!(
        "[[node]]\nname = \"dcu\"\ncount = {count}\nmemory_gb = 64\nbandwidth_gb_s = 670\nbf16_tflops = 98\n\
         int8_tops = 196\nlink_gb_s = 20\nlink_latency_us = 15\nlayer_us = 40\n"
    );
    Fleet::parse(&text, "nodes.toml").unwrap()
}

#[test]
fn r1_goes_on_16_dcus() {
    let workload = Workload { sequences: 64, redundancy: 0.1, ..Workload::default() };
    let plan = Plan::make(inventory("deepseek-r1", "q8_0"), dcus(16), workload).unwrap_err();
    assert!(plan.to_string().contains("too little"), "{plan}");
    let workload = Workload { sequences: 64, redundancy: 0.1, ..Workload::default() };
    let plan = Plan::make(inventory("deepseek-r1", "q4_k_m"), dcus(16), workload).unwrap();
    for node in &plan.memory {
        assert!(node.experts > 0 && node.headroom_bytes() > 0, "{node:?}");
    }
    let held: usize = plan.memory.iter().map(|node| node.experts).sum();
    assert_eq!(held, 58 * (256 + 25));
    let lines = text(&plan, true);
    for word in ["671.0 billion", "dcu-0 .. 15", "bf16", "int8", "bound by", "layer 60"] {
        assert!(lines.contains(word), "no '{word}' in\n{lines}");
    }
    let value = json(&plan);
    assert_eq!(value["placement"].as_array().unwrap().len(), 61);
    assert_eq!(value["nodes"][0]["name"], "dcu-0");
    assert!(value["decode"]["tokens_per_s"].as_f64().unwrap() > 0.0);
}

#[test]
fn what_does_not_fit_is_refused_with_the_difference() {
    let check = |model: &str, weights: &str, count: usize, sequences: usize, expected: &str| {
        let workload = Workload { sequences, ..Workload::default() };
        let error = Plan::make(inventory(model, weights), dcus(count), workload).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        match error {
            PlanError::ServerTooSmall { memory_bytes, needed_bytes, .. } => assert!(needed_bytes > memory_bytes),
            PlanError::ExpertsTooLarge { missing_bytes, needed_bytes, memory_bytes, .. } => {
                assert!(missing_bytes >= needed_bytes - memory_bytes && missing_bytes < needed_bytes);
            }
            other => panic!("{other}"),
        }
    };
    check("deepseek-r1", "fp8", 8, 1, "the routed experts do not fit");
    check("deepseek-r1", "fp8", 16, 100_000, "KV cache");
    check("deepseek-r1-distill-llama-70b", "bf16", 1, 1, "dcu has 64.00 GB and needs");
}

#[test]
fn the_examples_of_the_documentation_hold_r1() {
    let check = |file: &str, weights: &str, sequences: usize, bound: Option<&str>| {
        let path = format!("{}/../../docs/nodes/{file}", env!("CARGO_MANIFEST_DIR"));
        let fleet = Fleet::parse(&std::fs::read_to_string(path).unwrap(), file).unwrap();
        let workload = Workload { sequences, ..Workload::default() };
        match (Plan::make(inventory("deepseek-r1", weights), fleet, workload), bound) {
            (Ok(plan), Some(bound)) => {
                println!("{}", text(&plan, false));
                assert_eq!(plan.decode.spent.bound(), bound, "{file}");
            }
            (Err(error), None) => println!("{error}"),
            (found, _) => panic!("{file}: {:?}", found.map(|plan| plan.decode)),
        }
    };
    check("dcu-k100-ai-16.toml", "q8_0", 64, Some("memory bandwidth"));
    check("dcu-k100-ai-16.toml", "bf16", 64, None);
    check("h800-8.toml", "fp8", 64, None);
    check("h800-8.toml", "q4_k_m", 64, Some("memory bandwidth"));
    check("cpu-4.toml", "q4_k_m", 16, Some("memory bandwidth"));
}

#[test]
fn dense_models_need_no_workers() {
    let plan = Plan::make(inventory("deepseek-r1-distill-qwen-32b", "q8_0"), dcus(1), Workload::default()).unwrap();
    assert!(plan.traffic.is_empty() && plan.decode.tokens_per_s() > 10.0);
    assert_eq!(plan.decode.spent.link_s, 0.0);
}

#[test]
fn more_workers_and_a_faster_network_are_never_slower() {
    let speed = |count: usize, link: f64, latency: f64| {
        let nodes = format!(
            "[[node]]\nname = \"s\"\nduty = \"server\"\nmemory_gb = 640\nbandwidth_gb_s = 600\nbf16_tflops = 90\n\
             link_gb_s = {link}\nlink_latency_us = {latency}\n\
             [[node]]\nname = \"w\"\nduty = \"worker\"\ncount = {count}\nmemory_gb = 900\nbandwidth_gb_s = 600\n\
             bf16_tflops = 90\nlink_gb_s = {link}\nlink_latency_us = {latency}\n"
        );
        let fleet = Fleet::parse(&nodes, "nodes.toml").unwrap();
        let plan = Plan::make(inventory("deepseek-v3", "fp8"), fleet, Workload::default()).unwrap();
        plan.decode.tokens_per_s()
    };
    let mut before = 0.0;
    for (count, link, latency) in [(1, 1.0, 50.0), (2, 1.0, 50.0), (16, 1.0, 50.0), (16, 10.0, 50.0), (16, 10.0, 5.0)] {
        let now = speed(count, link, latency);
        assert!(now >= before, "{count} workers, {link} GB/s, {latency} us: {now} after {before}");
        before = now;
    }
}

#[test]
fn bad_files_name_the_field() {
    let good = "[[node]]\nname = \"a\"\nmemory_gb = 64\nbandwidth_gb_s = 600\nbf16_tflops = 90\n";
    assert!(Fleet::parse(good, "nodes.toml").is_ok());
    let check = |text: String, expected: &[&str]| {
        let error = Fleet::parse(&text, "nodes.toml").unwrap_err().to_string();
        for word in expected {
            assert!(error.contains(word), "no '{word}' in: {error}");
        }
    };
    let with = |field: &str| format!("{good}{field}\n");
    let without = |line: &str| good.lines().filter(|l| !l.starts_with(line)).collect::<Vec<_>>().join("\n");
    check("".into(), &["no [[node]]"]);
    check("node = 3".into(), &["node"]);
    check("[[node]".into(), &["nodes.toml"]);
    check(without("memory_gb"), &["memory_gb"]);
    check(without("name"), &["name"]);
    check(good.replace("= 600", "= 0"), &["node 'a'", "bandwidth_gb_s", "0 is not a number above 0"]);
    check(good.replace("= 600", "= -3"), &["bandwidth_gb_s", "-3"]);
    check(good.replace("= 600", "= nan"), &["bandwidth_gb_s", "NaN"]);
    check(good.replace("= 600", "= inf"), &["bandwidth_gb_s", "inf"]);
    check(good.replace("= 600", "= \"fast\""), &["bandwidth_gb_s"]);
    check(good.replace("= 600", "= 1e300"), &["bandwidth_gb_s"]);
    check(with("bandwith_gb_s = 3"), &["bandwith_gb_s"]);
    check(with("count = 0"), &["count", "1..="]);
    check(with("count = -1"), &["count"]);
    check(with("count = 1000000000"), &["count", "4096"]);
    check(with("count = 2"), &["link_gb_s", "is missing"]);
    check(with("duty = \"cook\""), &["duty"]);
    check(with("duty = \"worker\""), &["server"]);
    check(with("reserve_gb = 64"), &["reserve_gb"]);
    check(with("tile_rows = 0"), &["tile_rows"]);
    check(with("link_latency_us = -1"), &["link_latency_us"]);
    check(with("tops_by_format = { q9 = 1.0 }"), &["tops_by_format", "q9"]);
    check(with("tops_by_format = { q8_0 = 0.0 }"), &["tops_by_format"]);
    check(format!("{good}{good}"), &["name", "twice"]);
}

#[test]
fn bad_workloads_name_the_field() {
    let check = |workload: Workload, expected: &str| {
        let error = Plan::make(inventory("deepseek-v2-lite", "q8_0"), dcus(1), workload).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let fine = Workload::default();
    check(Workload { sequences: 0, ..fine.clone() }, "sequences");
    check(Workload { sequences: usize::MAX, ..fine.clone() }, "sequences");
    check(Workload { prefill_rows: 0, ..fine.clone() }, "prefill rows");
    check(Workload { context_tokens: 1 << 40, ..fine.clone() }, "context");
    check(Workload { redundancy: -0.1, ..fine.clone() }, "redundancy");
    check(Workload { redundancy: f64::NAN, ..fine.clone() }, "redundancy");
    check(Workload { load: Some(vec![]), ..fine.clone() }, "load");
    check(Workload { load: Some(vec![vec![1; 3]; 27]), ..fine }, "load");
}
