//! Tools that the model may call, and forms that its answer must have.

use lingqu_grammar::{GrammarSpec, ToolCalls, ToolFunction, ToolsGrammar, limits};
use lingqu_tokenizer::{ChatTemplate, ToolFormat};
use serde_json::Value;

use crate::RequestError;

/// The form that the answer must have, and the field that asked for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Format {
    pub spec: GrammarSpec,
    pub field: &'static str,
}

/// What the model may call. The template is told of them by `RenderOptions::tools`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tools {
    /// At least one.
    pub functions: Vec<ToolFunction>,
    pub choice: ToolChoice,
    /// Whether a reply may hold several calls; heeded where calls are forced.
    pub parallel: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides whether it calls or answers.
    Auto,
    /// It calls.
    Required,
    /// It calls this one.
    Named(String),
}

/// Reads one of OpenAI's tool objects; `field` is its path.
///
/// # Errors
/// Name the part that is missing or of a wrong type.
pub fn tool_function(field: &str, tool: &Value) -> Result<ToolFunction, RequestError> {
    if tool.get("type").is_some_and(|kind| !kind.is_null() && kind != "function") {
        return Err(RequestError::invalid(&format!("{field}.type"), "must be function"));
    }
    let (name, function) = named_function(field, tool)?;
    let parameters = match function.get("parameters") {
        None => Value::Null,
        Some(schema @ (Value::Null | Value::Object(_))) => schema.clone(),
        Some(_) => {
            return Err(RequestError::invalid(&format!("{field}.function.parameters"), "a schema is a JSON object"));
        }
    };
    Ok(ToolFunction { name: name.to_owned(), parameters })
}

/// Checks one of OpenAI's call objects, which templates are given as it is; `field` is its path.
///
/// # Errors
/// As [`tool_function`].
pub fn check_call(field: &str, call: &Value) -> Result<(), RequestError> {
    match named_function(field, call)?.1.get("arguments") {
        None | Some(Value::Null | Value::String(_) | Value::Object(_)) => Ok(()),
        Some(_) => {
            let field = format!("{field}.function.arguments");
            Err(RequestError::invalid(&field, "is neither a string nor an object"))
        }
    }
}

/// The function of a tool or a call, and its name.
fn named_function<'a>(field: &str, object: &'a Value) -> Result<(&'a str, &'a Value), RequestError> {
    let needed = |part: &str, what: &str| RequestError::invalid(&format!("{field}.{part}"), what);
    let function = object.get("function").filter(|function| function.is_object());
    let function = function.ok_or_else(|| needed("function", "an object is needed"))?;
    let name = function.get("name").and_then(Value::as_str);
    Ok((name.ok_or_else(|| needed("function.name", "a string is needed"))?, function))
}

/// How calls are read out of a model's replies, where its template says nothing of tools and calls are forced.
const FALLBACK: ToolFormat = ToolFormat::Hermes;

impl Tools {
    pub(crate) fn check(&self) -> Result<(), RequestError> {
        let count = self.functions.len();
        if count == 0 || count > limits::TOOLS_MAX {
            return Err(RequestError::invalid("tools", format_args!("{count} are not in 1..={}", limits::TOOLS_MAX)));
        }
        match &self.choice {
            ToolChoice::Named(name) if self.functions.iter().all(|function| function.name != *name) => {
                Err(RequestError::invalid("tool_choice", "names none of the tools"))
            }
            _ => Ok(()),
        }
    }

    /// How this model writes calls.
    ///
    /// # Errors
    /// A model that was never told of tools will not call them by itself.
    pub(crate) fn format(&self, template: Option<&ChatTemplate>) -> Result<ToolFormat, RequestError> {
        match template.and_then(ToolFormat::for_chat) {
            Some(format) => Ok(format),
            None if self.choice == ToolChoice::Auto => Err(RequestError::Unsupported(
                "tools: this model's chat template knows no tools, so it will not call them by itself; tool_choice can \
                 force a call (required, or a named function), or be none"
                    .into(),
            )),
            None => Ok(FALLBACK),
        }
    }

    /// The grammar of calls that are forced.
    pub(crate) fn grammar(&self, format: ToolFormat) -> Option<GrammarSpec> {
        let (tools, one) = match &self.choice {
            ToolChoice::Auto => return None,
            ToolChoice::Required => (self.functions.clone(), !self.parallel),
            ToolChoice::Named(name) => (self.functions.iter().filter(|f| f.name == *name).cloned().collect(), true),
        };
        let calls = if one { ToolCalls::One } else { ToolCalls::OneOrMore };
        Some(GrammarSpec::Tools(ToolsGrammar { format, tools, calls }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(choice: ToolChoice) -> Tools {
        let function = |name: &str| ToolFunction { name: name.into(), parameters: Value::Null };
        Tools { functions: vec![function("look"), function("call")], choice, parallel: true }
    }

    #[test]
    fn forced_calls_have_a_grammar() {
        let check = |tools: Tools, names: &[&str], calls: ToolCalls| {
            let Some(GrammarSpec::Tools(grammar)) = tools.grammar(ToolFormat::Hermes) else { panic!("{tools:?}") };
            let allowed: Vec<&str> = grammar.tools.iter().map(|tool| tool.name.as_str()).collect();
            assert_eq!((allowed.as_slice(), grammar.calls), (names, calls));
        };
        check(tools(ToolChoice::Required), &["look", "call"], ToolCalls::OneOrMore);
        check(Tools { parallel: false, ..tools(ToolChoice::Required) }, &["look", "call"], ToolCalls::One);
        check(tools(ToolChoice::Named("call".into())), &["call"], ToolCalls::One);
        assert_eq!(tools(ToolChoice::Auto).grammar(ToolFormat::Hermes), None);
    }

    #[test]
    fn tools_that_cannot_be_are_named() {
        let check = |tools: Tools, field: &str| {
            let error = tools.check().expect_err(field);
            assert!(error.to_string().starts_with(&format!("{field}: ")), "{error}");
        };
        assert_eq!(tools(ToolChoice::Named("look".into())).check(), Ok(()));
        check(Tools { functions: Vec::new(), ..tools(ToolChoice::Auto) }, "tools");
        let many = vec![ToolFunction { name: "x".into(), parameters: Value::Null }; limits::TOOLS_MAX + 1];
        check(Tools { functions: many, ..tools(ToolChoice::Auto) }, "tools");
        check(tools(ToolChoice::Named("fly".into())), "tool_choice");
        assert!(tools(ToolChoice::Auto).format(None).is_err());
        assert_eq!(tools(ToolChoice::Required).format(None), Ok(FALLBACK));
    }
}
