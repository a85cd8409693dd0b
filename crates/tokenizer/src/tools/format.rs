//! How models write tool calls.

use crate::chat::ChatTemplate;

/// The formats that are known, each by its marks in the text. Sources: the models' own chat templates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ToolFormat {
    /// DeepSeek R1, V3 and the models distilled from R1: the arguments stand in a block of Markdown.
    DeepSeekV3,
    /// DeepSeek V3.1: the arguments stand bare.
    DeepSeekV31,
    /// Qwen 2, 2.5 and 3, and Hermes before them: a JSON object between `<tool_call>` and `</tool_call>`.
    Hermes,
    /// Llama 3: the whole reply is a JSON object, or several with `;` between, maybe behind `<|python_tag|>`.
    Llama3,
}

pub(crate) const CALLS_BEGIN: &str = "<｜tool▁calls▁begin｜>";
pub(crate) const CALLS_END: &str = "<｜tool▁calls▁end｜>";
pub(crate) const CALL_BEGIN: &str = "<｜tool▁call▁begin｜>";
pub(crate) const CALL_END: &str = "<｜tool▁call▁end｜>";
pub(crate) const SEP: &str = "<｜tool▁sep｜>";
pub(crate) const TAG_OPEN: &str = "<tool_call>";
pub(crate) const TAG_CLOSE: &str = "</tool_call>";
pub(crate) const PYTHON_TAG: &str = "<|python_tag|>";
/// Opens the block of Markdown, and closes it.
pub(crate) const FENCE_JSON: &str = "```json";
pub(crate) const FENCE: &str = "```";

impl ToolFormat {
    pub const ALL: [Self; 4] = [Self::DeepSeekV3, Self::DeepSeekV31, Self::Hermes, Self::Llama3];

    /// As a configuration names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::DeepSeekV3 => "deepseek_v3",
            Self::DeepSeekV31 => "deepseek_v31",
            Self::Hermes => "hermes",
            Self::Llama3 => "llama3_json",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// What a model's template tells; `None`: it knows no tools, or writes calls in a way that is not known here.
    pub fn for_chat(template: &ChatTemplate) -> Option<Self> {
        let has = |text: &str| template.source().contains(text);
        match () {
            _ if has(CALLS_BEGIN) && has(FENCE_JSON) => Some(Self::DeepSeekV3),
            _ if has(CALLS_BEGIN) => Some(Self::DeepSeekV31),
            // `<function=`: the same tags around something else.
            _ if has(TAG_OPEN) && has(TAG_CLOSE) && !has("<function=") => Some(Self::Hermes),
            _ if has("<|start_header_id|>") && has("\"parameters\"") => Some(Self::Llama3),
            _ => None,
        }
    }

    /// All marks, some of which are special tokens that must reach the parser as text.
    pub fn marks(self) -> &'static [&'static str] {
        match self {
            Self::DeepSeekV3 | Self::DeepSeekV31 => &[CALLS_BEGIN, CALL_BEGIN, SEP, CALL_END, CALLS_END],
            Self::Hermes => &[TAG_OPEN, TAG_CLOSE],
            Self::Llama3 => &[PYTHON_TAG],
        }
    }

    /// Where a call may begin in the midst of text.
    pub(crate) fn openers(self) -> &'static [&'static str] {
        match self {
            Self::DeepSeekV3 | Self::DeepSeekV31 => &[CALLS_BEGIN, CALL_BEGIN],
            Self::Hermes => &[TAG_OPEN],
            Self::Llama3 => &[PYTHON_TAG],
        }
    }

    /// What ends a call whose JSON is broken.
    pub(crate) fn call_end(self) -> Option<&'static str> {
        match self {
            Self::DeepSeekV3 | Self::DeepSeekV31 => Some(CALL_END),
            Self::Hermes => Some(TAG_CLOSE),
            Self::Llama3 => None,
        }
    }

    /// What may stand behind a call and is no text.
    pub(crate) fn closers(self) -> &'static [&'static str] {
        match self {
            Self::DeepSeekV3 | Self::DeepSeekV31 => &[FENCE, CALL_END, CALLS_END],
            Self::Hermes => &[TAG_CLOSE],
            Self::Llama3 => &[";"],
        }
    }

    /// The call is a JSON object that holds the arguments, so that more may come behind them.
    pub(crate) fn is_object(self) -> bool {
        matches!(self, Self::Hermes | Self::Llama3)
    }
}
