//! What a grammar costs beside a step: `cargo bench -p lingqu-grammar --bench masks [-- TOKENIZER_FOLDER]`.
//!
//! Sixteen users, each under the same schema, each elsewhere in it, with a vocabulary of 150,000 tokens if a folder has
//! one (`scripts/fetch_tokenizers.sh` gets Qwen's) and else the default model's. For each round: sixteen masks in a
//! row, as the engine makes them, and sixteen accepted tokens.

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Instant;

use lingqu_grammar::{GrammarSpec, GrammarStart};
use lingqu_sampler::TokenMask;
use lingqu_testkit::rng::Rng;
use lingqu_types::TokenId;
use serde_json::{Value, json};
use support::{root, vocabulary};

const USERS: usize = 16;
const ROUNDS: usize = 200;

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "category": {"type": "string", "enum": ["water", "power", "noise", "roads", "heating", "other"]},
            "summary": {"type": "string"},
            "urgency": {"type": "integer", "minimum": 1, "maximum": 5},
            "address": {
                "type": "object",
                "properties": {
                    "district": {"type": "string"},
                    "street": {"type": "string"},
                    "number": {"type": ["integer", "null"]}
                },
                "required": ["district", "street", "number"],
                "additionalProperties": false
            },
            "departments": {"type": "array", "items": {"type": "string", "maxLength": 40}, "maxItems": 4},
            "phone": {"type": "string", "pattern": "^1[3-9][0-9]{9}$"},
            "due": {"type": "string", "format": "date"},
            "notes": {"type": ["string", "null"]}
        },
        "required": ["category", "summary", "urgency", "address", "departments", "phone", "due", "notes"],
        "additionalProperties": false
    })
}

/// A reply as a model writes it; each user's is a little different.
fn reply(user: usize) -> String {
    format!(
        "{{\"category\": \"water\", \"summary\": \"The main at crossing {user} has burst; 水管爆裂，积水{user}厘米，\
         affecting homes and a school, please send a crew.\", \"urgency\": 4, \"address\": {{\"district\": \"朝阳\", \
         \"street\": \"Jianguo Road {user}\", \"number\": {user}}}, \"departments\": [\"Water\", \"城市管理局\"], \
         \"phone\": \"13812345678\", \"due\": \"2026-11-23\", \"notes\": null}}"
    )
}

fn microseconds(mut times: Vec<f64>) -> String {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] * 1e6;
    let mean = times.iter().sum::<f64>() / times.len() as f64 * 1e6;
    format!("mean {mean:8.1}  median {:8.1}  p99 {:8.1}  max {:8.1} us", at(0.5), at(0.99), at(1.0))
}

fn main() {
    let argument = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let folder: &'static str = match argument {
        Some(folder) => folder.leak(),
        None if root().join(".cache/tokenizers/qwen3/tokenizer.json").exists() => ".cache/tokenizers/qwen3",
        None => "models/default",
    };
    let began = Instant::now();
    let vocabulary = vocabulary(folder);
    println!("{folder}: {} tokens; ready after {:.2} s", vocabulary.vocab, began.elapsed().as_secs_f64());
    for (name, spec) in [("schema", GrammarSpec::JsonSchema(schema())), ("any object", GrammarSpec::JsonObject)] {
        let began = Instant::now();
        vocabulary.compile(&spec, &GrammarStart::AtOnce);
        println!("{name}: compiled in {:.2} ms", began.elapsed().as_secs_f64() * 1e3);
        run(&vocabulary, name, &spec);
    }
}

fn run(vocabulary: &support::Vocabulary, name: &str, spec: &GrammarSpec) {
    let mut users: Vec<_> = (0..USERS)
        .map(|user| {
            let ids = vocabulary.tokenizer.encode(&reply(user), Default::default()).expect("text");
            let constraint = vocabulary.compile(spec, &GrammarStart::AtOnce);
            (constraint, ids, 0usize)
        })
        .collect();
    let mut rng = Rng::new(1);
    let mut mask = TokenMask::new(vocabulary.vocab);
    let (mut singles, mut rounds, mut accepts, mut copies) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let mut together = 0.0;
        for (constraint, ids, at) in &mut users {
            let began = Instant::now();
            mask.clear();
            constraint.allow(&mut mask).expect("a mask");
            let took = began.elapsed().as_secs_f64();
            singles.push(took);
            together += took;
            // Where the reply's own token may not come, any other may.
            let wanted = ids.get(*at).copied().filter(|&id| mask.allows(id));
            let any = || {
                let offset = rng.below(vocabulary.vocab);
                let ids = (0..vocabulary.vocab).map(|i| ((i + offset) % vocabulary.vocab) as TokenId);
                ids.into_iter().find(|&id| mask.allows(id)).expect("a token may come")
            };
            let token = wanted.unwrap_or_else(any);
            let began = Instant::now();
            if !vocabulary.eos.contains(&token) {
                constraint.accept(token).expect("it may come");
            }
            accepts.push(began.elapsed().as_secs_f64());
            *at += 1;
            if vocabulary.eos.contains(&token) || constraint.is_over() || (round + 1) % 150 == 0 {
                let began = Instant::now();
                *constraint = vocabulary.compile(spec, &GrammarStart::AtOnce);
                copies.push(began.elapsed().as_secs_f64());
                *at = 0;
            }
        }
        rounds.push(together);
    }
    println!("  one mask        {}", microseconds(singles));
    println!("  {USERS} in a row    {}", microseconds(rounds));
    println!("  accept          {}", microseconds(accepts));
    println!("  kept grammar    {}  ({name})", microseconds(copies));
}
