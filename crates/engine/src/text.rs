//! From tokens to text: decode, split thinking from answer, watch for stop strings, find tool calls.
//!
//! Every front end reads a generation through [`TextStream`], so that all of them cut text at the same place.

use std::sync::Arc;
use std::time::Duration;

use lingqu_tokenizer::{
    DecodeStream, ReasoningSplitter, SplitText, StopError, StopMatcher, Tokenizer, ToolCallDelta, ToolCallParser,
    ToolFormat, ToolText,
};
use lingqu_types::{FinishReason, TokenOutput, Usage};

use crate::{EngineError, Finished, PromptLogprobs, TokenEvent, TokenStream};

/// How a client wants its text.
#[derive(Clone, Debug)]
pub struct TextOptions {
    /// Generation ends before the first of these, in the answer or in the thinking.
    pub stop_strings: Vec<String>,
    /// Leave out tokens like `<|im_end|>`.
    pub skip_special_tokens: bool,
    pub reasoning: ReasoningMode,
    /// Tell tool calls, as the model writes them, apart from the answer; `None`: they are text of it. Stop strings
    /// are looked for in calls too.
    pub tools: Option<ToolFormat>,
}

impl Default for TextOptions {
    fn default() -> Self {
        Self { stop_strings: Vec::new(), skip_special_tokens: true, reasoning: ReasoningMode::Off, tools: None }
    }
}

impl TextOptions {
    /// Tells before the request is submitted what [`TextStream::new`] would refuse.
    pub fn validate(&self) -> Result<(), StopError> {
        StopMatcher::new(&self.stop_strings).map(|_| ())
    }
}

/// Whether thinking is told apart from the answer.
#[derive(Clone, Debug, Default)]
pub enum ReasoningMode {
    /// All is answer, tags included.
    #[default]
    Off,
    /// As the splitter finds: [`ReasoningSplitter::for_chat`] knows from template and prompt where the reply begins.
    Split(ReasoningSplitter),
}

/// What a client hears, in this order: at most one `Prompt`, any number of `Delta`, one `Finished` or `Failed`.
#[derive(Clone, Debug)]
pub enum TextEvent {
    Prompt(PromptLogprobs),
    /// Text and tokens that have come since the last one. Text lags behind tokens where a character, a tag or a stop
    /// string may be under way; each token comes once, in order.
    Delta {
        text: String,
        reasoning: String,
        tool_calls: Vec<ToolCallDelta>,
        tokens: Vec<TokenOutput>,
    },
    Finished(Finished),
    Failed(EngineError),
}

/// The text of one request. Dropping it before its end aborts the request.
pub struct TextStream {
    /// `None` once a stop string has ended the generation.
    tokens: Option<TokenStream>,
    /// What is to be told before anything else comes.
    next: Option<TextEvent>,
    text: TextPipeline,
    usage: Usage,
    seed: u64,
}

impl TextStream {
    /// # Errors
    /// Stop strings that cannot be taken; the request is aborted.
    pub fn new(tokens: TokenStream, tokenizer: Arc<Tokenizer>, options: TextOptions) -> Result<Self, StopError> {
        let usage = Usage { prompt_tokens: tokens.prompt_tokens, ..Usage::default() };
        let seed = tokens.seed;
        // A later turn of the conversation has a longer prompt, so its calls are named differently.
        let call_seed = seed.rotate_left(32) ^ u64::from(tokens.prompt_tokens);
        let text = TextPipeline::new(tokenizer, options, call_seed)?;
        Ok(Self { tokens: Some(tokens), next: None, text, usage, seed })
    }

    /// The next event; `None` after the last one. Cancel safe.
    pub async fn next(&mut self) -> Option<TextEvent> {
        if let Some(event) = self.next.take() {
            return Some(event);
        }
        let event = self.tokens.as_mut()?.recv().await?;
        Some(self.translate(event))
    }

    /// The same for a thread that may block; panics inside an async runtime.
    pub fn blocking_next(&mut self) -> Option<TextEvent> {
        if let Some(event) = self.next.take() {
            return Some(event);
        }
        let event = self.tokens.as_mut()?.blocking_recv()?;
        Some(self.translate(event))
    }

    /// [`TokenStream::queue_time`]; `None` too once a stop string has ended the generation.
    pub fn queue_time(&self) -> Option<Duration> {
        self.tokens.as_ref().and_then(TokenStream::queue_time)
    }

    /// Tool calls told so far. A reply that ends with [`FinishReason::Stop`] and has any is waiting for their results.
    pub fn tool_calls(&self) -> u32 {
        self.text.tools.as_ref().map_or(0, ToolCallParser::calls)
    }

    fn translate(&mut self, event: TokenEvent) -> TextEvent {
        match event {
            TokenEvent::Prompt(scores) => TextEvent::Prompt(scores),
            TokenEvent::Failed(error) => TextEvent::Failed(error),
            TokenEvent::Token(token) => {
                let piece = self.text.push(token.token);
                self.usage.completion_tokens += 1;
                self.usage.reasoning_tokens += u32::from(piece.thinking);
                if piece.stopped {
                    // Dropping the tokens aborts the request in the engine, which may be some tokens ahead.
                    self.tokens = None;
                    let (usage, seed) = (self.usage, self.seed);
                    self.next = Some(TextEvent::Finished(Finished { reason: FinishReason::Stop, usage, seed }));
                }
                piece.told(vec![token])
            }
            TokenEvent::Finished(mut finished) => {
                let piece = self.text.finish();
                finished.usage.reasoning_tokens = self.usage.reasoning_tokens;
                if piece.stopped {
                    finished.reason = FinishReason::Stop;
                }
                if piece.text.is_empty() && piece.reasoning.is_empty() && piece.tool_calls.is_empty() {
                    return TextEvent::Finished(finished);
                }
                self.next = Some(TextEvent::Finished(finished));
                piece.told(Vec::new())
            }
        }
    }
}

/// The chain from token to text. Its outcome does not depend on how the model cut the text into tokens.
struct TextPipeline {
    tokenizer: Arc<Tokenizer>,
    decode: DecodeStream,
    split: ReasoningSplitter,
    /// A stop string lies in the thinking or in the answer, never across both.
    stop_reasoning: StopMatcher,
    stop_text: StopMatcher,
    tools: Option<ToolCallParser>,
}

/// What one token adds.
#[derive(Debug, Default, PartialEq, Eq)]
struct Piece {
    text: String,
    reasoning: String,
    tool_calls: Vec<ToolCallDelta>,
    stopped: bool,
    /// The token belongs to the thinking.
    thinking: bool,
}

impl Piece {
    fn told(self, tokens: Vec<TokenOutput>) -> TextEvent {
        TextEvent::Delta { text: self.text, reasoning: self.reasoning, tool_calls: self.tool_calls, tokens }
    }
}

impl TextPipeline {
    fn new(tokenizer: Arc<Tokenizer>, options: TextOptions, call_seed: u64) -> Result<Self, StopError> {
        let stop = StopMatcher::new(&options.stop_strings)?;
        let split = match options.reasoning {
            ReasoningMode::Off => ReasoningSplitter::pass_through(),
            ReasoningMode::Split(splitter) => splitter,
        };
        let marks = options.tools.map_or(&[][..], ToolFormat::marks);
        let kept = marks.iter().filter_map(|mark| tokenizer.token_id(mark)).collect();
        let decode = DecodeStream::new(options.skip_special_tokens).keeping(kept);
        let tools = options.tools.map(|format| ToolCallParser::new(format, call_seed));
        Ok(Self { tokenizer, decode, split, stop_reasoning: stop.clone(), stop_text: stop, tools })
    }

    fn push(&mut self, token: u32) -> Piece {
        let before = self.split.in_reasoning();
        let decoded = self.decode.push(&self.tokenizer, token);
        let split = self.split.push(&decoded);
        let thinking = before || self.split.in_reasoning();
        let mut piece = Piece { thinking, ..self.watch(split) };
        let ends = piece.stopped;
        self.find_calls(&mut piece, ends);
        piece
    }

    /// What was held back, at the end.
    fn finish(&mut self) -> Piece {
        let decoded = self.decode.finish();
        let mut split = self.split.push(&decoded);
        let rest = self.split.finish();
        split.reasoning += &rest.reasoning;
        split.text += &rest.text;
        let mut piece = self.watch(split);
        if !piece.stopped {
            piece.reasoning += &self.stop_reasoning.finish();
            piece.text += &self.stop_text.finish();
        }
        self.find_calls(&mut piece, true);
        piece
    }

    /// Takes the calls out of the answer; at the end also what was held back.
    fn find_calls(&mut self, piece: &mut Piece, ends: bool) {
        let Some(tools) = &mut self.tools else { return };
        let ToolText { text, calls } = tools.push(&piece.text);
        (piece.text, piece.tool_calls) = (text, calls);
        if ends {
            let rest = tools.finish();
            piece.text += &rest.text;
            piece.tool_calls.extend(rest.calls);
        }
    }

    /// Cuts at the first stop string. The thinking comes before the answer, also within one piece.
    fn watch(&mut self, split: SplitText) -> Piece {
        let mut piece = Piece::default();
        if !split.reasoning.is_empty() {
            let out = self.stop_reasoning.push(&split.reasoning);
            piece.reasoning = out.text;
            piece.stopped = out.stopped.is_some();
        }
        if !piece.stopped && !split.text.is_empty() {
            // The answer has begun: what looked like a stop string in the thinking was none.
            piece.reasoning += &self.stop_reasoning.finish();
            let out = self.stop_text.push(&split.text);
            piece.text = out.text;
            piece.stopped = out.stopped.is_some();
        }
        piece
    }
}

#[cfg(test)]
mod tests;
