//! Ids to text, one at a time.

use lingqu_types::TokenId;

use crate::tokenizer::Tokenizer;

/// Turns a stream of tokens into text. A byte-level token may end inside a character (Chinese, emoji): such bytes wait
/// until the rest has come. All pieces together are [`Tokenizer::decode`] of all ids, however they come.
///
/// Holds at most 3 bytes between calls; the cost of a token is its own length.
#[derive(Clone, Debug)]
pub struct DecodeStream {
    skip_special: bool,
    /// Special tokens that are text all the same.
    kept: Vec<TokenId>,
    /// The beginning of a character.
    pending: Vec<u8>,
}

impl DecodeStream {
    pub fn new(skip_special: bool) -> Self {
        Self { skip_special, kept: Vec::new(), pending: Vec::new() }
    }

    /// Special tokens that are text even where others are skipped: the marks of tool calls.
    pub fn keeping(self, kept: Vec<TokenId>) -> Self {
        Self { kept, ..self }
    }

    /// The text that this token completes; often a word, sometimes nothing.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: TokenId) -> String {
        if self.skip_special && tokenizer.is_special(id) && !self.kept.contains(&id) {
            return String::new();
        }
        self.push_bytes(tokenizer.token_slice(id).unwrap_or_default())
    }

    /// Bytes that never became a character, as U+FFFD. To be called at the end.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.pending);
        String::from_utf8_lossy(&rest).into_owned()
    }

    fn push_bytes(&mut self, bytes: &[u8]) -> String {
        let mut text = String::with_capacity(self.pending.len() + bytes.len());
        self.pending.extend_from_slice(bytes);
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(e) => {
                    let (valid, after) = rest.split_at(e.valid_up_to());
                    text.push_str(std::str::from_utf8(valid).expect("checked by valid_up_to"));
                    rest = after;
                    match e.error_len() {
                        // The end is the beginning of a character.
                        None => break,
                        Some(bad) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            rest = &rest[bad..];
                        }
                    }
                }
            }
        }
        let keep = rest.len();
        self.pending.drain(..self.pending.len() - keep);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn in_pieces(bytes: &[u8], ends: &[usize]) -> String {
        let mut stream = DecodeStream::new(true);
        let mut text = String::new();
        let mut start = 0;
        for &end in ends.iter().chain([&bytes.len()]) {
            text += &stream.push_bytes(&bytes[start..end]);
            assert!(stream.pending.len() <= 3);
            start = end;
        }
        text + &stream.finish()
    }

    #[test]
    fn characters_wait_for_their_bytes() {
        let mut stream = DecodeStream::new(true);
        let mut pieces = Vec::new();
        for byte in "é你🚀x".bytes() {
            pieces.push(stream.push_bytes(&[byte]));
        }
        assert_eq!(pieces, ["", "é", "", "", "你", "", "", "", "🚀", "x"]);
        assert_eq!(stream.push_bytes(&[0xe4, 0xbd]), "");
        assert_eq!(stream.finish(), "\u{fffd}");
        assert_eq!(stream.finish(), "");
    }

    proptest! {
        #[test]
        fn any_cutting_gives_the_lossy_text(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..24),
                ".{0,12}".prop_map(String::into_bytes),
                proptest::collection::vec(proptest::sample::select(vec![0xf0u8, 0x9f, 0x9a, 0x80, 0xe4, b'a']), 0..12),
            ],
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..6),
        ) {
            let mut ends: Vec<usize> = cuts.iter().map(|i| i.index(bytes.len() + 1)).collect();
            ends.sort_unstable();
            prop_assert_eq!(in_pieces(&bytes, &ends), String::from_utf8_lossy(&bytes));
        }
    }
}
