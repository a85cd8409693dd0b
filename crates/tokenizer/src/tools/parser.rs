//! Tells tool calls from text in a reply that comes in pieces.

use super::format::ToolFormat;
use super::head::{self, Arguments};
use super::json::{ObjectScan, Scanned, Short};
use super::{ToolCallDelta, ToolText};

/// White space before a call that is held back, because it goes with the call.
const SPACE_BYTES_MAX: usize = 64;

/// Splits the answer part of a reply into text and tool calls. The outcome does not depend on how the text is cut.
///
/// What looks like a call and turns out to be none is text, marks included. Once the arguments of a call have begun it
/// stays a call: broken JSON is passed on for the client to judge. White space around calls belongs to neither. Held
/// back are at most the 8 KiB of a call's head, 64 bytes of white space, or a part of a mark.
#[derive(Clone, Debug)]
pub struct ToolCallParser {
    format: ToolFormat,
    state: State,
    /// Text that came but cannot be told apart yet.
    held: String,
    calls: u32,
    id_seed: u64,
}

#[derive(Clone, Debug)]
enum State {
    /// Nothing but white space so far: a call without an opening mark may come.
    Start,
    Text,
    /// A call may be under way behind so many bytes of white space.
    Head {
        space: usize,
    },
    Arguments(ObjectScan),
    /// Arguments that are no JSON: all up to the mark that ends the call.
    Broken,
    /// Within the object that holds the arguments, behind them: its brace, or a comma and more.
    ObjectEnd,
    /// Keys behind the arguments.
    Tail(ObjectScan),
    /// Behind a call: white space and closing marks are no text.
    Between,
}

enum Step {
    /// So many bytes are done with.
    Took(usize),
    /// What is left behind so many bytes must wait for more.
    Wait(usize),
}

impl ToolCallParser {
    /// Calls get ids that follow from `id_seed` and their index.
    pub fn new(format: ToolFormat, id_seed: u64) -> Self {
        let state = if format == ToolFormat::Llama3 { State::Start } else { State::Text };
        Self { format, state, held: String::new(), calls: 0, id_seed }
    }

    /// Calls so far.
    pub fn calls(&self) -> u32 {
        self.calls
    }

    /// Takes the next piece of the reply.
    pub fn push(&mut self, piece: &str) -> ToolText {
        let mut out = ToolText::default();
        let mut text = std::mem::take(&mut self.held);
        text.push_str(piece);
        let mut at = 0;
        while at < text.len() {
            match self.step(&text[at..], &mut out) {
                Step::Took(bytes) => at += bytes,
                Step::Wait(bytes) => {
                    at += bytes;
                    break;
                }
            }
        }
        text.drain(..at);
        self.held = text;
        out
    }

    /// What was held back. To be called at the end.
    pub fn finish(&mut self) -> ToolText {
        let mut out = ToolText::default();
        let rest = std::mem::take(&mut self.held);
        match self.state {
            State::Arguments(_) | State::Broken => self.argue(&rest, &mut out),
            // A mark that was cut off.
            State::ObjectEnd | State::Tail(_) | State::Between => {}
            State::Start | State::Text | State::Head { .. } => out.text = rest,
        }
        out
    }

    fn step(&mut self, rest: &str, out: &mut ToolText) -> Step {
        match &mut self.state {
            State::Start => self.start(rest),
            State::Text => self.text(rest, out),
            &mut State::Head { space } => self.head(rest, space, out),
            State::Arguments(scan) => {
                let (end, next) = match scan.push(rest) {
                    Scanned::More => (rest.len(), None),
                    Scanned::Broken(at) => (at, Some(State::Broken)),
                    Scanned::Ends(at) => (at, Some(self.behind_arguments())),
                };
                if let Some(next) = next {
                    self.state = next;
                }
                self.argue(&rest[..end], out);
                Step::Took(end)
            }
            State::Broken => self.broken(rest, out),
            State::ObjectEnd => self.object_end(rest),
            State::Tail(scan) => match scan.push(rest) {
                Scanned::More => Step::Took(rest.len()),
                Scanned::Broken(at) | Scanned::Ends(at) => {
                    self.state = State::Between;
                    Step::Took(at)
                }
            },
            State::Between => self.between(rest),
        }
    }

    fn start(&mut self, rest: &str) -> Step {
        let space = rest.len() - rest.trim_start().len();
        match space {
            _ if space > SPACE_BYTES_MAX => self.state = State::Text,
            _ if space == rest.len() => return Step::Wait(0),
            _ if rest[space..].starts_with('{') => self.state = State::Head { space },
            _ => self.state = State::Text,
        }
        Step::Took(0)
    }

    fn text(&mut self, rest: &str, out: &mut ToolText) -> Step {
        let openers = self.format.openers();
        let found = openers.iter().filter_map(|mark| rest.find(mark)).min();
        let held = found.unwrap_or_else(|| {
            let partial = openers.iter().map(|mark| partial_suffix(rest, mark)).max().unwrap_or(0);
            rest.len() - partial
        });
        let text = rest[..held].trim_end().len();
        let text = text.max(ceil_boundary(rest, held.saturating_sub(SPACE_BYTES_MAX)));
        out.text.push_str(&rest[..text]);
        match found {
            Some(_) => {
                self.state = State::Head { space: held - text };
                Step::Took(text)
            }
            None => Step::Wait(text),
        }
    }

    fn head(&mut self, rest: &str, space: usize, out: &mut ToolText) -> Step {
        let head = match head::read(self.format, &rest[space..]) {
            Ok(head) => head,
            Err(Short::More) => return Step::Wait(0),
            Err(Short::Broken) => {
                // No call: its opening mark is text, and so may be the rest.
                let mark = self.format.openers().iter().find(|mark| rest[space..].starts_with(**mark));
                let text = space + mark.map_or(0, |mark| mark.len());
                out.text.push_str(&rest[..text]);
                self.state = State::Text;
                return Step::Took(text);
            }
        };
        let id = Some(call_id(self.id_seed, self.calls));
        out.calls.push(ToolCallDelta { index: self.calls, id, name: Some(head.name), arguments: String::new() });
        self.calls += 1;
        match head.arguments {
            Arguments::From(at) => {
                self.state = State::Arguments(ObjectScan::default());
                Step::Took(space + at)
            }
            Arguments::Within { range, next } => {
                self.argue(&rest[space..][range], out);
                self.state = State::ObjectEnd;
                Step::Took(space + next)
            }
            Arguments::None { next } => {
                self.argue("{}", out);
                self.state = State::Between;
                Step::Took(space + next)
            }
        }
    }

    fn broken(&mut self, rest: &str, out: &mut ToolText) -> Step {
        let Some(mark) = self.format.call_end() else {
            self.argue(rest, out);
            return Step::Took(rest.len());
        };
        match rest.find(mark) {
            Some(at) => {
                self.argue(&rest[..at], out);
                self.state = State::Between;
                Step::Took(at + mark.len())
            }
            None => {
                let end = rest.len() - partial_suffix(rest, mark);
                self.argue(&rest[..end], out);
                Step::Wait(end)
            }
        }
    }

    fn object_end(&mut self, rest: &str) -> Step {
        let space = rest.len() - rest.trim_start().len();
        self.state = match rest[space..].bytes().next() {
            None => State::ObjectEnd,
            Some(b',') => State::Tail(ObjectScan::inside()),
            Some(_) => State::Between,
        };
        Step::Took(space + usize::from(rest[space..].starts_with(['}', ','])))
    }

    fn between(&mut self, rest: &str) -> Step {
        let space = rest.len() - rest.trim_start().len();
        if space > 0 {
            return Step::Took(space);
        }
        for mark in self.format.closers() {
            if rest.starts_with(mark) {
                return Step::Took(mark.len());
            }
            if mark.starts_with(rest) {
                return Step::Wait(0);
            }
        }
        self.state = match self.format {
            ToolFormat::Llama3 if rest.starts_with('{') => State::Head { space: 0 },
            _ => State::Text,
        };
        Step::Took(0)
    }

    fn behind_arguments(&self) -> State {
        match self.format.is_object() {
            true => State::ObjectEnd,
            false => State::Between,
        }
    }

    /// Adds to the arguments of the latest call.
    fn argue(&self, piece: &str, out: &mut ToolText) {
        let index = self.calls - 1;
        match out.calls.last_mut() {
            _ if piece.is_empty() => {}
            Some(call) if call.index == index => call.arguments.push_str(piece),
            _ => out.calls.push(ToolCallDelta { index, arguments: piece.to_owned(), ..ToolCallDelta::default() }),
        }
    }
}

/// Ids as different as their seeds (SplitMix64's mixing function).
fn call_id(seed: u64, index: u32) -> String {
    let mut z = seed.wrapping_add(u64::from(index).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    format!("call_{:016x}", z ^ (z >> 31))
}

/// The length of the longest proper prefix of `mark` that the text ends with.
fn partial_suffix(text: &str, mark: &str) -> usize {
    let is_end = |&length: &usize| mark.is_char_boundary(length) && text.ends_with(&mark[..length]);
    (1..mark.len()).rev().find(is_end).unwrap_or(0)
}

/// The smallest boundary of characters that is not below `at`.
fn ceil_boundary(text: &str, at: usize) -> usize {
    (at..text.len()).find(|&i| text.is_char_boundary(i)).unwrap_or(text.len())
}
