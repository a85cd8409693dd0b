//! The binary as a user runs it: every command, its output, its exit status.

mod support;

use serde_json::Value;
use support::{golden, lingqu, lingqu_with_input};

#[test]
fn help_names_every_command() {
    let help = lingqu(&["--help"]);
    assert_eq!(help.code, 0);
    for command in ["serve", "generate", "score", "inspect", "plan", "bench", "tokenize", "detokenize"] {
        assert!(help.stdout.contains(&format!("  {command} ")), "{command}: {}", help.stdout);
    }
}

/// Exit 2 for wrong usage, 1 for failure; one line on stderr that names what is wrong.
#[test]
fn errors_are_one_clear_line() {
    let check = |args: &[&str], code: i32, says: &str| {
        let run = lingqu(args);
        assert_eq!(run.code, code, "{args:?}: {}", run.stderr);
        assert!(run.stderr.contains(says), "{args:?}: {}", run.stderr);
        assert!(run.stdout.is_empty(), "{args:?}: {}", run.stdout);
    };
    check(&["generate"], 2, "--prompt");
    check(&["dance"], 2, "dance");
    check(&["generate", "--prompt", "x", "--isa", "vax"], 2, "vax");
    check(&["generate", "--prompt", "x", "--temperature", "-1"], 2, "temperature");
    check(&["generate", "--prompt", "x", "--max-context", "999999999"], 2, "--max-context");
    check(&["inspect", "/no/such/model"], 1, "/no/such/model");
    check(&["score", "--input", "/no/such/file"], 1, "/no/such/file");
    check(&["detokenize", "4000000000"], 1, "4000000000");
    let run = lingqu(&["inspect", "/no/such/model"]);
    assert_eq!(run.stderr.trim_end().lines().count(), 1, "{}", run.stderr);
}

#[test]
fn generate_replays_with_its_seed() {
    let generate = |extra: &[&str]| {
        let run = lingqu(&[&["generate", "--prompt", "秋天", "--max-tokens", "12"], extra].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
        run
    };
    let drawn = generate(&["--temperature", "1.5", "--seed", "7"]);
    assert!(!drawn.stdout.trim().is_empty());
    assert!(drawn.stderr.contains("seed 7"), "{}", drawn.stderr);
    assert_eq!(drawn.stdout, generate(&["--temperature", "1.5", "--seed", "7", "--threads", "1"]).stdout);
    assert_eq!(drawn.stdout, generate(&["--temperature", "1.5", "--seed", "7", "--isa", "portable"]).stdout);
    assert_ne!(drawn.stdout, generate(&["--temperature", "1.5", "--seed", "8"]).stdout);
    // Experts in host memory: here the same backend twice.
    let apart = ["--temperature", "1.5", "--seed", "7", "--backend", "cpu", "--experts", "cpu"];
    assert_eq!(drawn.stdout, generate(&apart).stdout);
    // Greedy needs no seed; the chat template changes the prompt.
    assert_eq!(generate(&["--temperature", "0"]).stdout, generate(&["--temperature", "0"]).stdout);
    assert_ne!(generate(&["--temperature", "0"]).stderr, generate(&["--temperature", "0", "--chat"]).stderr);
}

/// `score` against the golden file, whose fields have the same meaning.
#[test]
fn score_prints_what_the_golden_file_holds() {
    let (model, expected) = golden("llama-q4_k.gguf", "llama-q4_k.golden.json");
    let prompts = expected["prompts"].as_array().unwrap();
    let input: String =
        prompts.iter().map(|p| format!("{}\n", serde_json::json!({"token_ids": p["token_ids"]}))).collect();
    for backend in ["reference", "cpu"] {
        let args = ["score", "--model", &model, "--input", "-", "--top", "4", "--backend", backend];
        let run = lingqu_with_input(&args, &input);
        assert_eq!(run.code, 0, "{}", run.stderr);
        let lines: Vec<Value> = run.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.len(), prompts.len());
        for (line, prompt) in lines.iter().zip(prompts) {
            let (found, wanted) = (line["logprobs"].as_array().unwrap(), prompt["logprobs"].as_array().unwrap());
            assert_eq!(line["token_ids"], prompt["token_ids"]);
            assert_eq!(found.len(), wanted.len());
            assert!(found[0].is_null());
            for (a, b) in found.iter().zip(wanted).skip(1) {
                assert!((a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 0.2, "{backend}: {a} and {b}");
            }
            let top = line["top"].as_array().unwrap();
            assert_eq!(top.len(), found.len());
            assert!(top.iter().all(|t| t.as_array().unwrap().len() == 4));
        }
    }
}

#[test]
fn score_names_the_line_at_fault() {
    let check = |line: &str, says: &str| {
        let run = lingqu_with_input(&["score", "--input", "-"], &format!("{{\"token_ids\":[1]}}\n{line}\n"));
        assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{line}");
        assert!(run.stderr.contains("line 2") && run.stderr.contains(says), "{line}: {}", run.stderr);
    };
    check("{", "JSON");
    check("{\"token_ids\":[]}", "no token");
    check("{\"token_ids\":[-1]}", "token_ids");
    check("{\"token_ids\":[99999999]}", "99999999");
    check("{\"token_ids\":[1],\"text\":\"x\"}", "one of");
}

#[test]
fn inspect_tells_what_a_file_is() {
    let (model, _) = golden("deepseek2-v3-q4_k_m.gguf", "deepseek2-v3-q4_k_m.golden.json");
    let run = lingqu(&["inspect", &model]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    for part in ["deepseek", "MLA", "experts", "routed experts", "Q4_K", "KV cache", "memory"] {
        assert!(run.stdout.contains(part), "{part}: {}", run.stdout);
    }
    let json: Value = serde_json::from_str(&lingqu(&["inspect", &model, "--json"]).stdout).unwrap();
    let sum: u64 = json["weights"].as_array().unwrap().iter().map(|w| w["bytes"].as_u64().unwrap()).sum();
    assert_eq!(json["weight_bytes"].as_u64(), Some(sum));
    assert!(json["active_parameters"].as_u64() < json["parameters"].as_u64());
}

#[test]
fn plan_needs_a_configuration_alone() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../");
    let (r1, nodes) = (format!("{root}models/deepseek-r1"), format!("{root}docs/nodes/dcu-k100-ai-16.toml"));
    let run = lingqu(&["plan", "--model", &r1, "--nodes", &nodes, "--quant", "q8_0", "--json"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let plan: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(plan["nodes"].as_array().unwrap().len(), 16);
    assert_eq!(plan["placement"][60]["copies"].as_array().unwrap().len(), 256);
    let run = lingqu(&["plan", "--model", &format!("{r1}/config.json"), "--nodes", &nodes, "--quant", "bf16"]);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("too little") && run.stdout.is_empty(), "{}", run.stderr);
    // A checkpoint is counted as it is.
    let default = format!("{root}models/default");
    let run =
        lingqu(&["plan", "--model", &default, "--nodes", &format!("{root}docs/nodes/cpu-4.toml"), "--context", "512"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stdout.contains("as its files have them"), "{}", run.stdout);
}

#[test]
fn bench_reports_each_batch_size() {
    let run =
        lingqu(&"bench --prompt 40 --gen 4 --batch 1,3 --context 333 --repeat 1 --json".split(' ').collect::<Vec<_>>());
    assert_eq!(run.code, 0, "{}", run.stderr);
    let json: Value = serde_json::from_str(&run.stdout).unwrap();
    let results = json["results"].as_array().unwrap();
    let number = |value: &Value| value.as_f64().unwrap();
    let rows: Vec<_> = results.iter().map(|r| [number(&r["batch"]), number(&r["context_tokens"])]).collect();
    assert_eq!(rows, [[1.0, 40.0], [3.0, 40.0], [1.0, 333.0]]);
    for result in results {
        let computed = number(&result["context_tokens"]) == 40.0;
        assert_eq!(result["prefill_tokens_per_s"]["median"].as_f64().is_some_and(|v| v > 0.0), computed);
        assert!(number(&result["decode_tokens_per_s"]["median"]) > 0.0);
        assert!(number(&result["share_of_bandwidth"]) > 0.0);
    }
    // More sequences meet more experts, a longer one more of the cache; neither all that there is.
    let step = |row: usize| number(&results[row]["expected_bytes_per_step"]);
    assert!(step(0) < step(1) && step(1) < 3.0 * step(0) && step(0) < step(2), "{results:?}");
    assert!(number(&json["first_token_s"]) > number(&json["load_s"]));
    assert!(json["read_bandwidth_gb_per_s"]["median"].as_f64().unwrap() > 0.0);
    // Of the model alone, not of the gigabyte that bandwidth is measured with.
    let peak = json["peak_memory_bytes"].as_u64();
    assert!(peak.is_none_or(|bytes| (1 << 20..1 << 29).contains(&bytes)), "{peak:?}");
    assert_eq!(lingqu(&["bench", "--prompt", "99999999"]).code, 2);
    assert_eq!(lingqu(&["bench", "--context", "99999999"]).code, 2);
}

#[test]
fn tokens_come_back_as_text() {
    let text = "秋天 autumn 🍂\nfn main() {}";
    let ids = lingqu(&["tokenize", text]);
    assert_eq!(ids.code, 0, "{}", ids.stderr);
    let ids: Vec<&str> = ids.stdout.split_whitespace().collect();
    assert_eq!(lingqu(&["detokenize", &ids.join(",")]).stdout, format!("{text}\n"));
    let special = lingqu(&["tokenize", "--special", text]);
    assert_eq!(special.stdout.split_whitespace().count(), ids.len() + 1);
}

/// The embedded model through its chat template: quatrains are four lines of five or seven characters, statutes read as
/// such, and what it never learnt it does not pretend to know.
#[test]
fn the_default_model_keeps_its_forms() {
    let answer = |prompt: &str, seed: u32| {
        let seed = seed.to_string();
        let args =
            ["generate", "--backend", "cpu", "--chat", "--prompt", prompt, "--seed", &seed, "--max-tokens", "120"];
        let run = lingqu(&args);
        assert_eq!(run.code, 0, "{}", run.stderr);
        run.stdout
    };
    let asked = [("写一首关于秋天的五言绝句", 5), ("写一首关于明月的七言绝句", 7)];
    let mut well_formed = 0;
    for (seed, (prompt, characters)) in (0..10).zip(asked.iter().cycle()) {
        let poem = answer(prompt, seed);
        let lines: Vec<usize> = poem
            .split(|c: char| "，。？！；：、\n".contains(c))
            .map(|line| line.chars().count())
            .filter(|&n| n > 0)
            .collect();
        well_formed += usize::from(lines == [*characters; 4]);
    }
    assert!(well_formed >= 8, "{well_formed} of 10 quatrains");
    let statute = answer("第一条", 1);
    assert!(statute.contains("第一条") && statute.contains('。'), "{statute}");
    assert!(answer("法国的首都是哪里？", 1).contains("只会写诗"));
    // The transcript at the top of README.md.
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md")).expect("README.md");
    let poem = answer("写一首关于秋天的诗", 2);
    assert!(poem.lines().count() > 1 && poem.lines().all(|line| readme.contains(line)), "README tells another: {poem}");
}
