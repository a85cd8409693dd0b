//! Whatever a model would like to say, what it says has the form that was asked for.

mod support;

use lingqu_grammar::{GrammarSpec, GrammarStart, ToolCalls, ToolFunction, ToolsGrammar};
use lingqu_tokenizer::{ReasoningSplitter, ToolCallParser, ToolFormat};
use serde_json::{Value, json};
use support::{Vocabulary, conforms, vocabulary};

const VOCABULARIES: [&str; 4] = [
    "models/default",
    "testdata/golden/tokenizers/qwen2",
    "testdata/golden/tokenizers/deepseek-v3",
    "testdata/golden/tokenizers/llama-bpe",
];

/// What a hotline's dispatch asks for: every kind of value, nested, with Chinese names.
fn ticket() -> Value {
    json!({
        "type": "object",
        "properties": {
            "类别": {"type": "string", "enum": ["供水", "供电", "噪声", "其他"]},
            "urgency": {"type": "integer", "minimum": 1, "maximum": 5},
            "summary": {"type": "string", "maxLength": 12},
            "confidence": {"type": "number", "minimum": 0, "maximum": 1},
            "needs_visit": {"type": "boolean"},
            "place": {"$ref": "#/$defs/place"},
            "contacts": {"type": "array", "items": {"$ref": "#/$defs/contact"}, "minItems": 1, "maxItems": 2},
            "note": {"type": ["string", "null"], "maxLength": 4}
        },
        "required": ["类别", "urgency", "summary", "confidence", "needs_visit", "place", "contacts", "note"],
        "additionalProperties": false,
        "$defs": {
            "place": {
                "type": "object",
                "properties": {
                    "district": {"const": "朝阳"},
                    "number": {"anyOf": [{"type": "integer"}, {"type": "null"}]}
                },
                "required": ["district", "number"],
                "additionalProperties": false
            },
            "contact": {
                "type": "object",
                "properties": {"name": {"type": "string", "maxLength": 6}},
                "required": ["name"],
                "additionalProperties": false
            }
        }
    })
}

/// As many runs as there are seeds; most of them come to their end.
fn check(vocabulary: &Vocabulary, spec: &GrammarSpec, seeds: u64, is_right: impl Fn(&str) -> bool) {
    let mut ended = 0;
    for seed in 0..seeds {
        let reply = vocabulary.generate(spec, &GrammarStart::AtOnce, seed);
        if reply.ended {
            ended += 1;
            assert!(is_right(&reply.text), "{}, seed {seed}: {spec:?} gave {:?}", vocabulary.name, reply.text);
        }
    }
    assert!(ended * 4 >= seeds * 3, "{}: {spec:?}: only {ended} of {seeds} ended", vocabulary.name);
}

fn check_everywhere(spec: &GrammarSpec, seeds: u64, is_right: impl Fn(&str) -> bool) {
    VOCABULARIES.iter().for_each(|&name| check(&vocabulary(name), spec, seeds, &is_right));
}

fn is_json(text: &str, schema: &Value) -> bool {
    serde_json::from_str::<Value>(text).is_ok_and(|value| conforms(&value, schema, schema))
}

#[test]
fn schemas_are_kept() {
    let ticket = ticket();
    check_everywhere(&GrammarSpec::JsonSchema(ticket.clone()), 75, |text| is_json(text, &ticket));
}

#[test]
fn recursive_schemas_are_kept() {
    let tree = json!({
        "$ref": "#/$defs/node",
        "$defs": {"node": {
            "type": "object",
            "properties": {"id": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            "required": ["id", "children"],
            "additionalProperties": false
        }}
    });
    check_everywhere(&GrammarSpec::JsonSchema(tree.clone()), 40, |text| is_json(text, &tree));
}

#[test]
fn any_object_is_an_object() {
    check_everywhere(&GrammarSpec::JsonObject, 40, |text| is_json(text, &json!({"type": "object"})));
}

#[test]
fn choices_are_taken_whole() {
    let choices: Vec<String> = ["是", "否", "不知道", "不", "a\"b\\\n", "🚀🚀"].map(String::from).into();
    let spec = GrammarSpec::Choice(choices.clone());
    check_everywhere(&spec, 60, |text| choices.iter().any(|choice| choice == text));
}

#[test]
fn regular_expressions_are_matched() {
    let digits = |text: &str, count: usize| text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
    // `\d` means ten digits, not those of every script.
    check_everywhere(&GrammarSpec::Regex(r"1[3-9]\d{9}".into()), 60, |text| text.starts_with('1') && digits(text, 11));
    // Characters of several bytes, split over tokens.
    check_everywhere(&GrammarSpec::Regex("[京津沪渝][A-Z]·[0-9]{5}".into()), 60, |text| {
        let rest = text.strip_prefix(['京', '津', '沪', '渝']).unwrap_or_default();
        rest.chars().nth(1) == Some('·') && digits(&rest[rest.len() - 5..], 5)
    });
}

#[test]
fn grammars_are_followed() {
    let lark = "start: sum\nsum: term (\"+\" term)*\nterm: NUMBER | \"(\" sum \")\"\nNUMBER: /[0-9]{1,3}/\n";
    check_everywhere(&GrammarSpec::Lark(lark.into()), 60, |text| {
        let depth = text.chars().try_fold(0i32, |depth, c| match c {
            '(' => Some(depth + 1),
            ')' => Some(depth - 1).filter(|&depth| depth >= 0),
            '0'..='9' | '+' => Some(depth),
            _ => None,
        });
        depth == Some(0) && !text.contains("++") && !text.contains("()") && !text.ends_with('+')
    });
}

fn tools(format: ToolFormat, calls: ToolCalls) -> GrammarSpec {
    let city = json!({
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}},
        "required": ["city"],
        "additionalProperties": false
    });
    let weather = ToolFunction { name: "get_weather".into(), parameters: city };
    let now = ToolFunction { name: "now".into(), parameters: Value::Null };
    GrammarSpec::Tools(ToolsGrammar { format, tools: vec![weather, now], calls })
}

/// What is forced is what the parser of the same format reads: calls, and nothing beside them.
#[test]
fn forced_calls_are_calls() {
    for format in ToolFormat::ALL {
        for calls in [ToolCalls::One, ToolCalls::OneOrMore] {
            check_everywhere(&tools(format, calls), 25, |reply| {
                let mut parser = ToolCallParser::new(format, 0);
                let (out, rest) = (parser.push(reply), parser.finish());
                let right = out.calls.iter().all(|call| {
                    let arguments: Value = serde_json::from_str(&call.arguments).expect("JSON");
                    match call.name.as_deref() {
                        Some("get_weather") => arguments["city"].is_string(),
                        Some("now") => arguments == json!({}),
                        _ => false,
                    }
                });
                let count = parser.calls();
                let enough = if calls == ToolCalls::One { count == 1 } else { count >= 1 };
                right && enough && out.text.is_empty() && rest.text.is_empty()
            });
        }
    }
}

#[test]
fn the_grammar_begins_where_the_thinking_ends() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["a"], "additionalProperties": false});
    let spec = GrammarSpec::JsonSchema(schema.clone());
    let end = ReasoningSplitter::CLOSE;
    for name in VOCABULARIES {
        let vocabulary = vocabulary(name);
        let mut answered = 0;
        for seed in 0..40 {
            let start = GrammarStart::AfterReasoning { end: end.into() };
            let reply = vocabulary.generate(&spec, &start, seed);
            let Some((_, answer)) = reply.text.split_once(end) else {
                assert!(!reply.ended, "{name}, seed {seed}: ended in the midst of thinking");
                continue;
            };
            if reply.ended {
                answered += 1;
                assert!(is_json(answer.trim_start(), &schema), "{name}, seed {seed}: {answer:?}");
            }
        }
        // A vocabulary without the tag as a token says it by chance alone.
        let has_tag = vocabulary.tokenizer.token_id(end).is_some();
        assert!(!has_tag || answered > 20, "{name}: {answered} answers");
    }
}

#[test]
fn a_reply_may_open_its_thinking_or_not() {
    let vocabulary = vocabulary("testdata/golden/tokenizers/qwen2");
    let start = GrammarStart::MaybeReasoning { open: "<think>".into(), end: "</think>".into() };
    let spec = GrammarSpec::Choice(vec!["yes".into(), "no".into()]);
    let mut mask = lingqu_sampler::TokenMask::new(vocabulary.vocab);
    let mut constraint = vocabulary.compile(&spec, &start);
    constraint.allow(&mut mask).unwrap();
    let open = vocabulary.tokenizer.token_id("<think>").unwrap();
    assert!(mask.allows(open), "thinking may begin");
    constraint.accept(open).unwrap();
    mask.clear();
    constraint.allow(&mut mask).unwrap();
    assert!((0..800).all(|id| mask.allows(id)) && !mask.allows(vocabulary.eos[0]), "all may come but the end");
    for id in vocabulary.tokenizer.encode("Hm.</think>\n\nyes", Default::default()).unwrap() {
        mask.clear();
        constraint.allow(&mut mask).unwrap();
        assert!(mask.allows(id), "token {id}");
        constraint.accept(id).unwrap();
    }
    assert!(constraint.is_over());
    constraint.roll_back(3).unwrap();
    assert!(!constraint.is_over());
}

/// The tokenizer's own way to write a text of the grammar is always allowed.
#[test]
fn canonical_tokens_are_allowed() {
    let check = |spec: GrammarSpec, text: &str| {
        for name in VOCABULARIES {
            let vocabulary = vocabulary(name);
            let mut constraint = vocabulary.compile(&spec, &GrammarStart::AtOnce);
            let mut mask = lingqu_sampler::TokenMask::new(vocabulary.vocab);
            let ids = vocabulary.tokenizer.encode(text, Default::default()).unwrap();
            for (at, &id) in ids.iter().enumerate() {
                mask.clear();
                constraint.allow(&mut mask).unwrap();
                assert!(
                    mask.allows(id),
                    "{name}: {text:?}: token {at} {:?}",
                    vocabulary.tokenizer.decode(&[id], false)
                );
                constraint.accept(id).unwrap();
            }
            mask.clear();
            let ends = constraint.is_over() || {
                constraint.allow(&mut mask).unwrap();
                mask.allows(vocabulary.eos[0])
            };
            assert!(ends, "{name}: {text:?} is whole");
        }
    };
    let contacts = "\"contacts\": [{\"name\": \"李\"}], \"note\": null}";
    let text = format!(
        "{{\"类别\": \"供水\", \"urgency\": 3, \"summary\": \"水管 \\\"爆\\\"裂 🚰\", \"confidence\": 0.75, \
         \"needs_visit\": true, \"place\": {{\"district\": \"朝阳\", \"number\": 12}}, {contacts}"
    );
    check(GrammarSpec::JsonSchema(ticket()), &text);
    check(GrammarSpec::JsonSchema(ticket()), &text.replace(": ", ":").replace(", ", ",\n  "));
    check(GrammarSpec::Choice(vec!["市政府".into(), "市政府办公厅".into()]), "市政府");
    check(GrammarSpec::JsonObject, "{\"a\": [1, 2.5e3, {\"b\": null}], \"é\": \"\\n\"}");
}

#[test]
fn the_same_tokens_lead_to_the_same_masks() {
    let vocabulary = vocabulary("models/default");
    let spec = GrammarSpec::JsonSchema(ticket());
    for seed in 0..10 {
        let (one, two) = (
            vocabulary.generate(&spec, &GrammarStart::AtOnce, seed),
            vocabulary.generate(&spec, &GrammarStart::AtOnce, seed),
        );
        assert_eq!(one.ids, two.ids);
    }
}
