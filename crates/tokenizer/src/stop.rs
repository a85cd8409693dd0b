//! Stop strings over streamed text.

/// Stop strings of one request; OpenAI allows 4, others 16.
const STOPS_MAX: usize = 64;
const STOP_BYTES_MAX: usize = 1024;

/// Finds the first of several strings in a text that comes in pieces, and lets through what comes before it.
///
/// The match is the one that ends first in the stream; of several that end at once, the longest. Held back is only
/// what could still be the beginning of a stop string. The outcome does not depend on how the text is cut.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<Pattern>,
    /// Text that came but was not let through: a prefix of a stop string.
    held: String,
    stopped: Option<usize>,
}

/// What one piece of text led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopOutput {
    /// Text to pass on.
    pub text: String,
    /// The index of the stop string that was found: the generation is over, and whatever comes later is dropped.
    pub stopped: Option<usize>,
}

/// Stop strings that cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StopError {
    #[error("{count} stop strings are more than {STOPS_MAX}")]
    TooMany { count: usize },
    #[error("stop string {index} is empty")]
    Empty { index: usize },
    #[error("stop string {index} of {bytes} bytes is longer than {STOP_BYTES_MAX}")]
    TooLong { index: usize, bytes: usize },
}

/// One stop string as the automaton of Knuth, Morris and Pratt.
#[derive(Clone, Debug)]
struct Pattern {
    bytes: Vec<u8>,
    /// For each prefix, the length of its longest proper border. `[bytes + 1]`
    border: Vec<usize>,
    /// Length of the longest prefix that the stream ends with.
    matched: usize,
}

impl StopMatcher {
    /// # Errors
    /// More than 64 strings, empty ones, and strings of more than 1,024 bytes.
    pub fn new<S: AsRef<str>>(stops: &[S]) -> Result<Self, StopError> {
        if stops.len() > STOPS_MAX {
            return Err(StopError::TooMany { count: stops.len() });
        }
        for (index, stop) in stops.iter().map(AsRef::as_ref).enumerate() {
            match stop.len() {
                0 => return Err(StopError::Empty { index }),
                bytes if bytes > STOP_BYTES_MAX => return Err(StopError::TooLong { index, bytes }),
                _ => {}
            }
        }
        Ok(Self { stops: stops.iter().map(|s| Pattern::new(s.as_ref())).collect(), held: String::new(), stopped: None })
    }

    /// Takes the next piece; gives the text that is certain to come before any stop string.
    pub fn push(&mut self, piece: &str) -> StopOutput {
        if self.stopped.is_some() {
            return StopOutput { text: String::new(), stopped: self.stopped };
        }
        if self.stops.is_empty() {
            return StopOutput { text: piece.to_owned(), stopped: None };
        }
        let mut text = std::mem::take(&mut self.held);
        let before = text.len();
        text.push_str(piece);
        for at in before..text.len() {
            let byte = text.as_bytes()[at];
            let mut found: Option<usize> = None;
            for (index, stop) in self.stops.iter_mut().enumerate() {
                if stop.step(byte) && found.is_none_or(|best| stop.bytes.len() > best) {
                    found = Some(stop.bytes.len());
                    self.stopped = Some(index);
                }
            }
            if let Some(length) = found {
                text.truncate(at + 1 - length);
                return StopOutput { text, stopped: self.stopped };
            }
        }
        let hold = self.stops.iter().map(|s| s.matched).max().unwrap_or(0);
        self.held = text.split_off(text.len() - hold);
        StopOutput { text, stopped: None }
    }

    /// What was held back and turned out not to be a stop string. To be called at the end; what is pushed after it is
    /// a new text.
    pub fn finish(&mut self) -> String {
        self.stops.iter_mut().for_each(|stop| stop.matched = 0);
        std::mem::take(&mut self.held)
    }
}

impl Pattern {
    fn new(stop: &str) -> Self {
        let bytes = stop.as_bytes().to_vec();
        let mut border = vec![0; bytes.len() + 1];
        let mut length = 0;
        for i in 1..bytes.len() {
            while length > 0 && bytes[i] != bytes[length] {
                length = border[length];
            }
            length += usize::from(bytes[i] == bytes[length]);
            border[i + 1] = length;
        }
        Self { bytes, border, matched: 0 }
    }

    /// Takes a byte of the stream; true if the stream now ends with the whole string.
    fn step(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.border[self.matched];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
        self.matched == self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The text let through and the stop string found, for a text in pieces.
    fn run<'a>(stops: &[&str], pieces: impl IntoIterator<Item = &'a str>) -> (String, Option<usize>) {
        let mut matcher = StopMatcher::new(stops).expect("valid stops");
        let mut text = String::new();
        let mut stopped = None;
        for piece in pieces {
            let out = matcher.push(piece);
            text += &out.text;
            stopped = out.stopped;
        }
        (text + &matcher.finish(), stopped)
    }

    /// The definition: of all occurrences, the one that ends first, then the longest.
    fn plainly(stops: &[&str], text: &str) -> (String, Option<usize>) {
        let occurrences = stops.iter().enumerate().filter_map(|(i, s)| text.find(s).map(|at| (at + s.len(), at, i)));
        match occurrences.min() {
            Some((_, at, index)) => (text[..at].to_owned(), Some(index)),
            None => (text.to_owned(), None),
        }
    }

    #[test]
    fn a_finished_matcher_starts_anew() {
        let mut matcher = StopMatcher::new(&["END"]).unwrap();
        assert_eq!((matcher.push("an EN").text, matcher.finish()), ("an ".to_owned(), "EN".to_owned()));
        assert_eq!(matcher.push(""), StopOutput { text: String::new(), stopped: None });
        assert_eq!(matcher.push("D").text, "D");
    }

    #[test]
    fn stops_are_cut_out() {
        let check = |stops: &[&str], pieces: &[&str], text: &str, stopped: Option<usize>| {
            assert_eq!(run(stops, pieces.iter().copied()), (text.to_owned(), stopped), "{stops:?} {pieces:?}");
        };
        check(&[], &["a", "b"], "ab", None);
        check(&["\n\n"], &["one\n", "\ntwo"], "one", Some(0));
        check(&["\n\n"], &["one\n", "two\n"], "one\ntwo\n", None);
        check(&["END", "ND"], &["xEN", "Dy"], "x", Some(0));
        check(&["。。"], &["好", "。", "好。。", "x"], "好。好", Some(0));
        check(&["aab"], &["aa", "ab"], "a", Some(0));
        check(&["abcd", "bc"], &["ab", "cd"], "a", Some(1));
        check(&["stop"], &["st", "op", "more"], "", Some(0));
    }

    #[test]
    fn holds_back_no_more_than_a_prefix() {
        let mut m = StopMatcher::new(&["<end>"]).unwrap();
        assert_eq!(m.push("a<b<e").text, "a<b");
        assert_eq!(m.push("x").text, "<ex");
        assert_eq!(m.push("plain").text, "plain");
    }

    #[test]
    fn bounds_are_errors() {
        let check = |stops: Vec<String>, error: StopError| assert_eq!(StopMatcher::new(&stops).unwrap_err(), error);
        check(vec!["a".into(); 65], StopError::TooMany { count: 65 });
        check(vec!["a".into(), String::new()], StopError::Empty { index: 1 });
        check(vec!["a".repeat(1025)], StopError::TooLong { index: 0, bytes: 1025 });
    }

    proptest! {
        #[test]
        fn any_cutting_gives_the_same(
            stops in proptest::collection::vec("[ab。]{1,4}", 0..4),
            text in "[abc。]{0,24}",
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..6),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let boundaries: Vec<usize> = (0..=text.len()).filter(|&i| text.is_char_boundary(i)).collect();
            let mut ends: Vec<usize> = cuts.iter().map(|c| boundaries[c.index(boundaries.len())]).collect();
            ends.extend([0, text.len()]);
            ends.sort_unstable();
            let got = run(&stops, ends.windows(2).map(|w| &text[w[0]..w[1]]));
            prop_assert_eq!(got, plainly(&stops, &text));
        }
    }
}
