//! R1's thinking: `<think>` … `</think>` before the answer.

use crate::chat::ChatTemplate;

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// Splits a reply that comes in pieces into the thinking and the answer. The tags and the line ends and spaces next to
/// them belong to neither. The outcome does not depend on how the text is cut.
///
/// Thinking comes first or not at all; later tags are text of the answer.
#[derive(Clone, Debug)]
pub struct ReasoningSplitter {
    state: State,
    /// Text that came but cannot be told apart yet: the beginning of a tag, or white space that may precede one.
    held: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but white space so far: `<think>` may come.
    Start,
    /// Just behind `<think>`: white space belongs to the tag.
    Opened,
    Reasoning,
    /// Just behind `</think>`: white space belongs to the tag.
    Closed,
    Answer,
}

/// What one piece of a reply adds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SplitText {
    pub reasoning: String,
    /// The answer.
    pub text: String,
}

impl ReasoningSplitter {
    /// What begins the thinking.
    pub const OPEN: &str = OPEN;
    /// What ends it.
    pub const CLOSE: &str = CLOSE;

    /// For models that do not think: all is answer.
    pub fn pass_through() -> Self {
        Self::in_state(State::Answer)
    }

    /// For a reply to this rendered prompt. A template that knows no `</think>` means a model that does not think. One
    /// that ends the prompt with `<think>` has opened the thinking already; one that ends it with `</think>` has
    /// turned it off; else the reply may open it.
    pub fn for_chat(template: &ChatTemplate, prompt: &str) -> Self {
        let prompt = prompt.trim_end();
        Self::in_state(match () {
            _ if !template.source().contains(CLOSE) => State::Answer,
            _ if prompt.ends_with(OPEN) => State::Opened,
            _ if prompt.ends_with(CLOSE) => State::Closed,
            _ => State::Start,
        })
    }

    fn in_state(state: State) -> Self {
        Self { state, held: String::new() }
    }

    /// Whether the next text counts as thinking, as far as is known.
    pub fn in_reasoning(&self) -> bool {
        matches!(self.state, State::Opened | State::Reasoning)
    }

    /// Whether the reply thinks or may yet begin to.
    pub fn may_reason(&self) -> bool {
        self.in_reasoning() || self.state == State::Start
    }

    /// Takes the next piece of the reply.
    pub fn push(&mut self, piece: &str) -> SplitText {
        let mut out = SplitText::default();
        if self.state == State::Answer && self.held.is_empty() {
            out.text.push_str(piece);
            return out;
        }
        let mut rest = std::mem::take(&mut self.held);
        rest.push_str(piece);
        while !rest.is_empty() {
            match self.step(&mut rest, &mut out) {
                Step::Again => {}
                Step::Wait => {
                    self.held = rest;
                    break;
                }
            }
        }
        out
    }

    /// What was held back: it was no tag after all. To be called at the end.
    pub fn finish(&mut self) -> SplitText {
        let rest = std::mem::take(&mut self.held);
        match self.state {
            State::Opened | State::Closed => SplitText::default(),
            State::Reasoning => SplitText { reasoning: rest, text: String::new() },
            State::Start | State::Answer => SplitText { reasoning: String::new(), text: rest },
        }
    }

    fn step(&mut self, rest: &mut String, out: &mut SplitText) -> Step {
        match self.state {
            State::Start => {
                let text = rest.trim_start();
                if let Some(after) = text.strip_prefix(OPEN) {
                    *rest = after.to_owned();
                    self.state = State::Opened;
                } else if OPEN.starts_with(text) {
                    return Step::Wait;
                } else {
                    self.state = State::Answer;
                }
            }
            State::Opened | State::Closed => {
                let space = rest.len() - rest.trim_start().len();
                rest.drain(..space);
                if !rest.is_empty() {
                    self.state = if self.state == State::Opened { State::Reasoning } else { State::Answer };
                }
            }
            State::Reasoning => {
                if let Some(at) = rest.find(CLOSE) {
                    out.reasoning.push_str(rest[..at].trim_end());
                    rest.drain(..at + CLOSE.len());
                    self.state = State::Closed;
                } else {
                    let tag = partial_suffix(rest, CLOSE);
                    let hold = rest[..rest.len() - tag].trim_end().len();
                    out.reasoning.push_str(&rest[..hold]);
                    rest.drain(..hold);
                    return Step::Wait;
                }
            }
            State::Answer => out.text.push_str(&std::mem::take(rest)),
        }
        Step::Again
    }
}

enum Step {
    Again,
    /// What is left must wait for more text.
    Wait,
}

/// The length of the longest proper prefix of `tag` (which is ASCII) that the text ends with.
fn partial_suffix(text: &str, tag: &str) -> usize {
    (1..tag.len()).rev().find(|&n| text.ends_with(&tag[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run<'a>(state: State, pieces: impl IntoIterator<Item = &'a str>) -> (String, String) {
        let mut splitter = ReasoningSplitter::in_state(state);
        let mut all = SplitText::default();
        for piece in pieces {
            let out = splitter.push(piece);
            assert!(all.text.is_empty() || out.reasoning.is_empty(), "thinking after the answer");
            all.reasoning += &out.reasoning;
            all.text += &out.text;
        }
        let out = splitter.finish();
        (all.reasoning + &out.reasoning, all.text + &out.text)
    }

    /// The definition on the whole text.
    fn plainly(state: State, text: &str) -> (String, String) {
        let inside = match state {
            State::Start => match text.trim_start().strip_prefix(OPEN) {
                Some(inside) => inside,
                None => return (String::new(), text.to_owned()),
            },
            State::Opened => text,
            _ => return (String::new(), text.to_owned()),
        };
        match inside.split_once(CLOSE) {
            Some((reasoning, answer)) => (reasoning.trim().to_owned(), answer.trim_start().to_owned()),
            None => (inside.trim_start().to_owned(), String::new()),
        }
    }

    #[test]
    fn cases() {
        let check = |state: State, text: &str, reasoning: &str, answer: &str| {
            let whole = (reasoning.to_owned(), answer.to_owned());
            assert_eq!(run(state, [text]), whole, "{state:?} {text:?}");
            let each: Vec<String> = text.chars().map(String::from).collect();
            assert_eq!(run(state, each.iter().map(String::as_str)), whole, "{state:?} {text:?} by characters");
        };
        check(State::Start, "<think>\nhm\n</think>\n\n42", "hm", "42");
        check(State::Start, "plain", "", "plain");
        check(State::Start, " \n<thing> is no tag", "", " \n<thing> is no tag");
        check(State::Start, "<thi", "", "<thi");
        check(State::Opened, "一步\n\n二步\n</think>答", "一步\n\n二步", "答");
        check(State::Opened, "never closed </thin", "never closed </thin", "");
        check(State::Opened, "</think>at once", "", "at once");
        check(State::Opened, "a</think>b<think>c</think>d", "a", "b<think>c</think>d");
        check(State::Answer, "<think>x</think>", "", "<think>x</think>");
    }

    #[test]
    fn prompts_tell_where_the_reply_begins() {
        let check = |source: &str, prompt: &str, state: State| {
            let template = ChatTemplate::new(source).expect("template");
            assert_eq!(ReasoningSplitter::for_chat(&template, prompt).state, state, "{source:?} {prompt:?}");
        };
        check("{{ messages }}", "<think>", State::Answer);
        check("{# </think> #}", "<｜Assistant｜><think>\n", State::Opened);
        check("{# </think> #}", "<｜Assistant｜>", State::Start);
        check("{# </think> #}", "<think>\n\n</think>\n\n", State::Closed);
    }

    proptest! {
        #[test]
        fn any_cutting_gives_the_same(
            parts in proptest::collection::vec(
                proptest::sample::select(vec![
                    "<think>", "</think>", "<", "</", "think>", "</thi", "\n", " ", "a", "好", "b\n",
                ]),
                0..10,
            ),
            opened in any::<bool>(),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..8),
        ) {
            let text = parts.concat();
            let state = if opened { State::Opened } else { State::Start };
            let boundaries: Vec<usize> = (0..=text.len()).filter(|&i| text.is_char_boundary(i)).collect();
            let mut ends: Vec<usize> = cuts.iter().map(|c| boundaries[c.index(boundaries.len())]).collect();
            ends.extend([0, text.len()]);
            ends.sort_unstable();
            let got = run(state, ends.windows(2).map(|w| &text[w[0]..w[1]]));
            prop_assert_eq!(got, plainly(state, &text));
        }
    }
}
