//! Specifications that would cost too much, or make no sense: a typed error, soon, and never a panic.

mod support;

use std::time::{Duration, Instant};

use lingqu_grammar::limits::{CHOICES_MAX, DEPTH_MAX, SPEC_BYTES_MAX, TEXT_BYTES_MAX, TOOLS_MAX};
use lingqu_grammar::{GrammarError, GrammarSpec, GrammarStart, ToolCalls, ToolFunction, ToolsGrammar};
use lingqu_sampler::TokenMask;
use lingqu_tokenizer::ToolFormat;
use serde_json::{Value, json};
use support::{Vocabulary, vocabulary};

/// Not a measurement: an hour would be a hang.
const LONG: Duration = Duration::from_secs(60);

fn compile(vocabulary: &Vocabulary, spec: &GrammarSpec) -> Result<(), GrammarError> {
    let began = Instant::now();
    let made = vocabulary.compiler.compile(spec, &GrammarStart::AtOnce);
    let made = made.map(|mut constraint| {
        // What compiles may still be too much for a mask: an error then, as soon.
        let _ = constraint.allow(&mut TokenMask::new(vocabulary.vocab));
    });
    assert!(began.elapsed() < LONG, "{spec:.200?} took {:?}", began.elapsed());
    made
}

#[test]
fn what_makes_no_sense_is_refused() {
    let vocabulary = vocabulary("testdata/golden/tokenizers/qwen2");
    let check = |spec: GrammarSpec| {
        let error = compile(&vocabulary, &spec).expect_err("it makes no sense");
        assert!(matches!(&error, GrammarError::Invalid { problem, .. } if !problem.is_empty()), "{spec:?}: {error}");
        assert!(error.to_string().len() < 600 && !error.to_string().contains("backtrace"), "{error}");
    };
    check(GrammarSpec::JsonSchema(json!(3)));
    check(GrammarSpec::JsonSchema(json!({"type": "thing"})));
    check(GrammarSpec::JsonSchema(json!({"type": "object", "not": {}})));
    check(GrammarSpec::JsonSchema(json!({"$ref": "#/$defs/none"})));
    check(GrammarSpec::JsonSchema(json!({"$ref": "https://example.com/schema.json"})));
    check(GrammarSpec::JsonSchema(json!({"type": "string", "pattern": "("})));
    check(GrammarSpec::JsonSchema(json!({"type": "integer", "minimum": 5, "maximum": 4})));
    check(GrammarSpec::JsonSchema(json!(false)));
    check(GrammarSpec::JsonSchema(json!({"type": "object", "x-guidance": {"lenient": true}})));
    check(GrammarSpec::Regex("(".into()));
    check(GrammarSpec::Regex("(?=a)b".into()));
    check(GrammarSpec::Choice(Vec::new()));
    check(GrammarSpec::Lark(String::new()));
    check(GrammarSpec::Lark("start: nothing".into()));
    check(GrammarSpec::Lark("start: \"a\" | ".repeat(3)));
    check(GrammarSpec::Lark("start: <[99999999]>".into()));
    check(GrammarSpec::Lark("begin: \"a\"".into()));
    let tool = |name: &str, parameters: Value| {
        let tools = vec![ToolFunction { name: name.into(), parameters }];
        GrammarSpec::Tools(ToolsGrammar { format: ToolFormat::Hermes, tools, calls: ToolCalls::One })
    };
    check(tool("", Value::Null));
    check(tool("a\nb", Value::Null));
    check(tool("f", json!("text")));
    check(tool("f", json!({"type": "object", "properties": {"a": {"type": "thing"}}})));
    let start = GrammarStart::AfterReasoning { end: String::new() };
    assert!(vocabulary.compiler.compile(&GrammarSpec::JsonObject, &start).is_err());
}

#[test]
fn what_is_too_large_is_refused() {
    let vocabulary = vocabulary("testdata/golden/tokenizers/qwen2");
    let check = |spec: GrammarSpec| {
        let error = compile(&vocabulary, &spec).expect_err("too large");
        assert!(matches!(error, GrammarError::TooLarge { count, max, .. } if count > max), "{error}");
    };
    let deep = (0..DEPTH_MAX).fold(json!({"type": "null"}), |inner, _| json!({"type": "array", "items": inner}));
    check(GrammarSpec::JsonSchema(deep));
    check(GrammarSpec::JsonSchema(json!({"const": "x".repeat(SPEC_BYTES_MAX)})));
    check(GrammarSpec::Regex("a".repeat(TEXT_BYTES_MAX + 1)));
    check(GrammarSpec::Lark("start: \"a\"\n".repeat(1 << 20)));
    check(GrammarSpec::Choice(vec!["x".into(); CHOICES_MAX + 1]));
    check(GrammarSpec::Choice(vec!["x".repeat(SPEC_BYTES_MAX + 1)]));
    let tools = (0..=TOOLS_MAX).map(|i| ToolFunction { name: format!("f{i}"), parameters: Value::Null }).collect();
    let format = ToolFormat::Hermes;
    check(GrammarSpec::Tools(ToolsGrammar { format, tools, calls: ToolCalls::One }));
}

/// Within the bounds of size, but made to cost. Some compile, some do not; none hangs, ends the process, or fails the
/// mask in any way but by an error.
#[test]
fn what_is_made_to_cost_ends_soon() {
    let vocabulary = vocabulary("testdata/golden/tokenizers/qwen2");
    let check = |spec: GrammarSpec| drop(compile(&vocabulary, &spec));
    let regex = |text: String| check(GrammarSpec::Regex(text));
    regex("(a*)*".repeat(500));
    regex("((a{1,1000}){1,1000}){1,1000}".into());
    regex("(a|b|ab)*c".repeat(200));
    regex(".*a.{1000}".into());
    regex(format!("{}a{}", "(".repeat(20_000), ")".repeat(20_000)));
    regex(r"\w{5000}".into());
    regex("(x+x+)+y".into());
    let lark = |text: String| check(GrammarSpec::Lark(text));
    lark(format!("start: {}\"a\"{}", "(".repeat(30_000), ")".repeat(30_000)));
    lark("start: ".to_owned() + &"~".repeat(60_000) + "\"a\"");
    lark((0..4000).map(|i| format!("r{i}: r{}\n", i + 1)).collect::<String>() + "r4000: \"a\"\nstart: r0");
    lark((0..4000).map(|i| format!("T{i}: \"a\" T{}\n", i + 1)).collect::<String>() + "T4000: \"a\"\nstart: T0");
    lark((0..25).map(|i| format!("r{i}: r{0} r{0}\n", i + 1)).collect::<String>() + "r25: \"a\"\nstart: r0");
    lark("start: start start | \"a\" | \"\"".into());
    lark("start: a{1000000000}\na: \"b\"".into());
    lark("start: %json {\"type\": \"array\", \"minItems\": 1000000000}".into());
    let schema = |schema: Value| check(GrammarSpec::JsonSchema(schema));
    schema(json!({"enum": (0..20_000).map(|i| format!("value number {i}")).collect::<Vec<_>>()}));
    schema(json!({"type": "array", "minItems": 1_000_000_000, "maxItems": 2_000_000_000}));
    schema(json!({"type": "string", "minLength": 1_000_000, "maxLength": 100_000_000}));
    schema(json!({"type": "string", "pattern": "^(a+)+(b|c{1,5000})*$"}));
    let names: Vec<String> = (0..3000).map(|i| format!("p{i}")).collect();
    let properties: Value =
        names.iter().map(|n| (n.clone(), json!({"type": "string"}))).collect::<serde_json::Map<_, _>>().into();
    schema(json!({"type": "object", "properties": properties, "additionalProperties": true}));
    let all: Vec<Value> =
        (0..40).map(|i| json!({"anyOf": [{"type": "string", "maxLength": i}, {"type": "number"}]})).collect();
    schema(json!({"allOf": all}));
    let chain: Value = (0..5000)
        .map(|i| (format!("d{i}"), json!({"$ref": format!("#/$defs/d{}", i + 1)})))
        .chain([("d5000".to_owned(), json!({"type": "null"}))])
        .collect::<serde_json::Map<_, _>>()
        .into();
    schema(json!({"$ref": "#/$defs/d0", "$defs": chain}));
    schema(json!({"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}}}));
}
