//! From specifications to llguidance's grammars, with the bounds that must hold before it reads them.

use std::fmt::Write;

use lingqu_tokenizer::ToolFormat;
use llguidance::api::TopLevelGrammar;
use llguidance::regex_to_lark;
use serde_json::{Value, json};

use crate::limits::{CHOICES_MAX, DEPTH_MAX, SPEC_BYTES_MAX, TEXT_BYTES_MAX, TOOL_NAME_BYTES_MAX, TOOLS_MAX};
use crate::vocabulary::Vocabulary;
use crate::{GrammarError, GrammarSpec, ToolCalls, ToolsGrammar};

/// The key by which a schema may carry llguidance's own options.
const OPTIONS: &str = "x-guidance";

impl GrammarSpec {
    /// As errors name it.
    pub(crate) fn what(&self) -> &'static str {
        match self {
            Self::JsonObject => "json_object",
            Self::JsonSchema(_) => "json_schema",
            Self::Regex(_) => "regex",
            Self::Choice(_) => "choice",
            Self::Lark(_) => "grammar",
            Self::Tools(_) => "tools",
        }
    }
}

pub(crate) fn translate(spec: &GrammarSpec, vocabulary: &Vocabulary) -> Result<TopLevelGrammar, GrammarError> {
    let what = spec.what();
    match spec {
        GrammarSpec::JsonObject => Ok(TopLevelGrammar::from_json_schema(bounded(&json!({"type": "object"})))),
        GrammarSpec::JsonSchema(schema) => {
            check_schema(what, schema)?;
            Ok(TopLevelGrammar::from_json_schema(bounded(schema)))
        }
        GrammarSpec::Regex(regex) => {
            check_count(what, "bytes", regex.len(), TEXT_BYTES_MAX)?;
            // `\d` and `\w` as JSON Schema's patterns have them: ASCII's, not those of every script.
            Ok(TopLevelGrammar::from_lark(format!("start: /{}/\n", regex_to_lark(regex, "dw"))))
        }
        GrammarSpec::Choice(choices) => {
            check_count(what, "choices", choices.len(), CHOICES_MAX)?;
            check_size(what, choices.iter().map(String::len).sum())?;
            if choices.is_empty() {
                return Err(invalid(what, "holds no choice"));
            }
            let quoted: Vec<String> = choices.iter().map(|choice| literal(choice)).collect();
            Ok(TopLevelGrammar::from_lark(format!("start: {}\n", quoted.join(" | "))))
        }
        GrammarSpec::Lark(grammar) => {
            check_count(what, "bytes", grammar.len(), TEXT_BYTES_MAX)?;
            Ok(TopLevelGrammar::from_lark(grammar.clone()))
        }
        GrammarSpec::Tools(tools) => Ok(TopLevelGrammar::from_lark(tools_lark(what, tools, vocabulary)?)),
    }
}

pub(crate) fn invalid(what: &'static str, problem: impl Into<String>) -> GrammarError {
    GrammarError::Invalid { what, problem: problem.into() }
}

fn check_size(what: &'static str, bytes: usize) -> Result<(), GrammarError> {
    check_count(what, "bytes", bytes, SPEC_BYTES_MAX)
}

fn check_count(what: &'static str, of: &'static str, count: usize, max: usize) -> Result<(), GrammarError> {
    if count > max { Err(GrammarError::TooLarge { what, of, count, max }) } else { Ok(()) }
}

/// A schema is an object (or `true`), and neither long nor deep.
fn check_schema(what: &'static str, schema: &Value) -> Result<(), GrammarError> {
    if !schema.is_object() && !schema.is_boolean() {
        return Err(invalid(what, "a schema is a JSON object"));
    }
    if schema.get(OPTIONS).is_some() {
        return Err(invalid(what, format!("{OPTIONS} is not supported")));
    }
    check_count(what, "levels", depth(schema), DEPTH_MAX)?;
    check_size(what, schema.to_string().len())
}

/// The schema as llguidance is given it. White space between parts is free but bounded: small models else like it so
/// much that they never end.
fn bounded(schema: &Value) -> Value {
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        schema => schema.clone(),
    };
    if let Some(fields) = schema.as_object_mut() {
        fields.insert(OPTIONS.into(), json!({"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,16}"}));
    }
    schema
}

fn depth(value: &Value) -> usize {
    let mut deepest = 0;
    let mut open = vec![(value, 1)];
    while let Some((value, level)) = open.pop() {
        deepest = deepest.max(level);
        match value {
            Value::Array(items) => open.extend(items.iter().map(|item| (item, level + 1))),
            Value::Object(fields) => open.extend(fields.values().map(|field| (field, level + 1))),
            _ => {}
        }
    }
    deepest
}

/// A literal of Lark, which has JSON's strings.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// Calls in the model's own format, byte for byte as its template writes earlier ones.
fn tools_lark(what: &'static str, spec: &ToolsGrammar, vocabulary: &Vocabulary) -> Result<String, GrammarError> {
    check_count(what, "tools", spec.tools.len(), TOOLS_MAX)?;
    if spec.tools.is_empty() {
        return Err(invalid(what, "holds no tool"));
    }
    // A mark that is a special token can only come as that token.
    let mark = |mark: &str| match vocabulary.tokenizer().token_id(mark) {
        Some(id) if vocabulary.tokenizer().is_special(id) => format!("<[{id}]>"),
        _ => literal(mark),
    };
    let calls = match (spec.calls, spec.format) {
        (ToolCalls::One, _) => "call".to_owned(),
        (ToolCalls::OneOrMore, ToolFormat::Llama3) => format!("call ({} call)*", literal("; ")),
        (ToolCalls::OneOrMore, _) => format!("call ({} call)*", literal("\n")),
    };
    let mut lark = match spec.format {
        ToolFormat::DeepSeekV3 | ToolFormat::DeepSeekV31 => {
            let (begin, end) = (mark("<｜tool▁calls▁begin｜>"), mark("<｜tool▁calls▁end｜>"));
            // V3.1 writes calls without a line end between.
            let calls = if spec.format == ToolFormat::DeepSeekV31 { calls.replace(r#""\n" "#, "") } else { calls };
            format!("start: {begin} {calls} {end}\n")
        }
        ToolFormat::Hermes | ToolFormat::Llama3 => format!("start: {calls}\n"),
    };
    let names: Vec<String> = (0..spec.tools.len()).map(|index| format!("call_{index}")).collect();
    let _ = writeln!(lark, "call: {}", names.join(" | "));
    let mut bytes = 0;
    for (tool, rule) in spec.tools.iter().zip(names) {
        if tool.name.is_empty() || tool.name.len() > TOOL_NAME_BYTES_MAX || tool.name.contains(['\n', '<']) {
            return Err(invalid(what, format!("{:?} is no name of a function", tool.name)));
        }
        let schema = match &tool.parameters {
            Value::Null => json!({"type": "object", "properties": {}, "additionalProperties": false}),
            schema => schema.clone(),
        };
        check_schema(what, &schema)?;
        let schema = format!("%json {}", bounded(&schema));
        bytes += schema.len();
        check_size(what, bytes)?;
        let name = Value::from(tool.name.as_str()).to_string();
        let body = match spec.format {
            ToolFormat::DeepSeekV3 => {
                let head = literal(&format!("{}\n```json\n", tool.name));
                let (begin, sep, end) =
                    (mark("<｜tool▁call▁begin｜>"), mark("<｜tool▁sep｜>"), mark("<｜tool▁call▁end｜>"));
                format!("{begin} \"function\" {sep} {head} {schema} {} {end}", literal("\n```"))
            }
            ToolFormat::DeepSeekV31 => {
                let (begin, sep, end) =
                    (mark("<｜tool▁call▁begin｜>"), mark("<｜tool▁sep｜>"), mark("<｜tool▁call▁end｜>"));
                format!("{begin} {} {sep} {schema} {end}", literal(&tool.name))
            }
            ToolFormat::Hermes => {
                let head = literal(&format!("\n{{\"name\": {name}, \"arguments\": "));
                format!("{} {head} {schema} {} {}", mark("<tool_call>"), literal("}\n"), mark("</tool_call>"))
            }
            ToolFormat::Llama3 => {
                let head = literal(&format!("{{\"name\": {name}, \"parameters\": "));
                format!("{head} {schema} {}", literal("}"))
            }
        };
        let _ = writeln!(lark, "{rule}: {body}");
    }
    Ok(lark)
}
