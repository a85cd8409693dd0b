//! Chat templates: Jinja, rendered as Hugging Face's `apply_chat_template` renders it.
//!
//! A template comes with the weights, from whoever made them. So its work is bounded: instructions, bytes, nesting;
//! see [`bounds`].

mod bounds;
mod filters;
mod python;

use std::fmt;

use minijinja::machinery::{CodeGenerator, Token, eval, make_string_output, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use serde::{Deserialize, Serialize};

use bounds::{FUEL_MAX, LITERAL_BYTES_MAX, LITERAL_WORK_BYTES_MAX, RECURSION_MAX, SOURCE_BYTES_MAX};

const NAME: &str = "chat_template";

/// One message of a conversation, in OpenAI's terms.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, `tool`; which are allowed is the template's choice.
    pub role: String,
    /// Templates see `none` where there is none, as beside tool calls.
    #[serde(default)]
    pub content: Option<String>,
    /// The thinking of an assistant's earlier turn; most templates leave it out of later prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// OpenAI's tool calls as JSON objects, handed to the template unchanged. (Some templates want
    /// `function.arguments` as a string, R1's does; some as an object.)
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl ChatMessage {
    /// A plain message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(content.into()), ..Self::default() }
    }
}

/// What a template is told besides the messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RenderOptions {
    /// End the prompt where the assistant's reply begins.
    pub add_generation_prompt: bool,
    /// Tool descriptions as JSON schemas; templates see `none` for an empty list.
    pub tools: Vec<serde_json::Value>,
    /// Further variables (`enable_thinking`, …). They cannot replace `messages`.
    pub extra: serde_json::Map<String, serde_json::Value>,
    /// The time that `strftime_now` tells, in seconds since 1970, UTC. `None`: now.
    pub now_unix_s: Option<i64>,
}

/// A compiled chat template. Immutable; `Send + Sync`.
pub struct ChatTemplate {
    source: String,
    environment: Environment<'static>,
    syntax: SyntaxConfig,
    /// `bos_token` and so on.
    special_tokens: Vec<(&'static str, String)>,
}

/// Why a template could not be read or rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChatTemplateError {
    #[error("the chat template is not valid: {0}")]
    Syntax(String),
    /// The template itself refused the conversation (`raise_exception`): the client's fault.
    #[error("the chat template refuses this conversation: {0}")]
    Raised(String),
    /// The template ran out of its bounds.
    #[error("the chat template does too much work: {0}")]
    Limit(String),
    /// A variable of the wrong type, an unknown filter, ….
    #[error("the chat template cannot be rendered: {0}")]
    Render(String),
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// [`ChatTemplateError::Syntax`] for what is not Jinja, is too long or nests too deeply.
    pub fn new(source: &str) -> Result<Self, ChatTemplateError> {
        let syntax = |problem: String| ChatTemplateError::Syntax(problem);
        if source.len() > SOURCE_BYTES_MAX {
            return Err(syntax(format!("{} bytes are more than {SOURCE_BYTES_MAX}", source.len())));
        }
        let source = without_generation_tags(source);
        let config = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let config = config.map_err(|e| syntax(e.to_string()))?;
        let literal_bytes_max = check_tokens(&source, &config)?;
        let mut environment = Environment::new();
        // Literal text is the one thing that is written without being counted, so it is counted here.
        let fuel = FUEL_MAX.min(LITERAL_WORK_BYTES_MAX / literal_bytes_max.max(1) as u64);
        environment.set_fuel(Some(fuel));
        environment.set_recursion_limit(RECURSION_MAX);
        bounds::install(&mut environment);
        filters::install(&mut environment);
        let template = Self { source, environment, syntax: config, special_tokens: Vec::new() };
        template.compile(|_, _| Ok(())).map_err(|e| syntax(first_line(&e)))?;
        Ok(template)
    }

    /// Tokens that templates write by name; those that the model lacks stay undefined.
    pub(crate) fn with_special_tokens(mut self, tokens: &[(&'static str, Option<String>)]) -> Self {
        self.special_tokens = tokens.iter().filter_map(|(name, token)| Some((*name, token.clone()?))).collect();
        self
    }

    /// The template's own text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt for a conversation. Encode it with `EncodeOptions::CHAT`: the template writes the special tokens
    /// itself.
    ///
    /// # Errors
    /// [`ChatTemplateError::Raised`] if the template refuses the conversation, `Limit` if it works too much (template
    /// bombs), `Render` for anything else, with the line.
    pub fn render(&self, messages: &[ChatMessage], options: &RenderOptions) -> Result<String, ChatTemplateError> {
        let mut context = serde_json::Map::new();
        for (name, token) in &self.special_tokens {
            context.insert((*name).into(), token.as_str().into());
        }
        context.insert("documents".into(), serde_json::Value::Null);
        context.extend(options.extra.clone());
        let json = |v: serde_json::Result<serde_json::Value>| v.map_err(|e| ChatTemplateError::Render(e.to_string()));
        context.insert("messages".into(), json(serde_json::to_value(messages))?);
        let tools = if options.tools.is_empty() { None } else { Some(&options.tools) };
        context.insert("tools".into(), json(serde_json::to_value(tools))?);
        context.insert("add_generation_prompt".into(), options.add_generation_prompt.into());
        context.insert(bounds::BUDGET_KEY.into(), bounds::budget_bytes(&context).into());
        context.insert(filters::NOW_KEY.into(), options.now_unix_s.into());

        let mut rendered = String::new();
        let root = Value::from(minijinja::value::Serde(&context));
        self.compile(|instructions, blocks| {
            let mut out = make_string_output(&mut rendered);
            eval(&self.environment, instructions, root, blocks, &mut out, AutoEscape::None).map(|_| ())
        })
        .map_err(|e| render_error(&e))?;
        Ok(rendered)
    }

    /// Parses, replaces the operators that could do unbounded work, and hands the program to `run`. Compiled anew for
    /// each use (some 100 microseconds): a compiled template borrows its text.
    fn compile<'s>(
        &'s self,
        run: impl FnOnce(&bounds::Program<'s>, &bounds::Blocks<'s>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let ast = parse(&self.source, NAME, self.syntax.clone())?;
        let mut generator = CodeGenerator::new(NAME, &self.source);
        generator.compile_stmt(&ast);
        let (mut instructions, blocks) = generator.finish();
        if !blocks.is_empty() {
            return Err(Error::new(ErrorKind::SyntaxError, "blocks are for pages, not for chats"));
        }
        bounds::replace_operators(&mut instructions)?;
        run(&instructions, &blocks)
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source).finish_non_exhaustive()
    }
}

/// Hugging Face's `{% generation %}` … `{% endgeneration %}` marks the assistant's words for training and renders as
/// its body; `{% if true %}` does the same.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let signs = tag.len() - tag.trim_start_matches(['-', '+']).len();
        let spaces = tag[signs..].len() - tag[signs..].trim_start().len();
        let word = &tag[signs + spaces..];
        let end = word.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(word.len());
        let replacement = match &word[..end] {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        out.push_str(&tag[..signs + spaces]);
        out.push_str(replacement.unwrap_or(&word[..end]));
        rest = &word[end..];
    }
    out.push_str(rest);
    out
}

/// What stands before a `*`.
#[derive(Clone, Copy, PartialEq)]
enum Before {
    /// An operator, a bracket that opens: the sign is that of `f(*list)`.
    Nothing,
    /// A name or number.
    Factor,
    /// A text, or a bracket that closes: maybe a constant text or list.
    Value,
}

/// Finds the longest literal text, and refuses products of constants: the compiler would work them out
/// (`"x" * 99999999`) before any bound holds.
fn check_tokens(source: &str, syntax: &SyntaxConfig) -> Result<usize, ChatTemplateError> {
    let mut literal_bytes_max = 0;
    let (mut before, mut times) = (Before::Nothing, false);
    for token in tokenize(source, false, syntax.clone()) {
        let (token, _) = token.map_err(|e| ChatTemplateError::Syntax(first_line(&e)))?;
        let factor = matches!(token, Token::Ident(_) | Token::Int(_) | Token::Float(_));
        let product = matches!(token, Token::Mul) && before != Before::Nothing;
        if (times && !factor) || (product && before == Before::Value) {
            return Err(ChatTemplateError::Syntax("`*` is for names and numbers only".into()));
        }
        times = product;
        before = match token {
            Token::TemplateData(text) => {
                literal_bytes_max = literal_bytes_max.max(text.len());
                Before::Nothing
            }
            Token::Str(_) | Token::String(_) => Before::Value,
            Token::ParenClose | Token::BracketClose | Token::BraceClose => Before::Value,
            _ if factor => Before::Factor,
            _ => Before::Nothing,
        };
    }
    if literal_bytes_max > LITERAL_BYTES_MAX {
        let problem = format!("a literal text of {literal_bytes_max} bytes is longer than {LITERAL_BYTES_MAX}");
        return Err(ChatTemplateError::Syntax(problem));
    }
    Ok(literal_bytes_max)
}

/// The message without the excerpt of source that debug output would add.
fn first_line(error: &Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

fn render_error(error: &Error) -> ChatTemplateError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = source {
        if let Some(filters::Raised(message)) = e.downcast_ref() {
            return ChatTemplateError::Raised(message.clone());
        }
        if let Some(bounds::LimitReached(what)) = e.downcast_ref() {
            return ChatTemplateError::Limit((*what).to_owned());
        }
        if let Some(e) = e.downcast_ref::<Error>() {
            if e.kind() == ErrorKind::OutOfFuel {
                return ChatTemplateError::Limit("it runs too many instructions".into());
            }
            if e.detail().is_some_and(|d| d.contains("recursion limit")) {
                return ChatTemplateError::Limit("it nests too deeply".into());
            }
        }
        source = e.source();
    }
    ChatTemplateError::Render(first_line(error))
}

#[cfg(test)]
mod tests;
