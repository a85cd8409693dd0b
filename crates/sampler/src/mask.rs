//! Which tokens may come: what a grammar leaves.

use lingqu_types::TokenId;

/// A set of allowed tokens, one bit each. Tokens past its end are not allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u64>,
}

impl TokenMask {
    /// Allows none of this many tokens.
    pub fn new(vocab: usize) -> Self {
        Self { words: vec![0; vocab.div_ceil(64)] }
    }

    /// Allows none any more.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Bit `i % 64` of word `i / 64` allows token `i`; for grammar engines that fill it.
    pub fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words
    }

    /// Allows a token; ids past the end are ignored.
    pub fn allow(&mut self, token: TokenId) {
        if let Some(word) = self.words.get_mut(token as usize / 64) {
            *word |= 1 << (token % 64);
        }
    }

    pub fn allows(&self, token: TokenId) -> bool {
        self.words.get(token as usize / 64).is_some_and(|word| word >> (token % 64) & 1 == 1)
    }

    /// Sets the logits of all tokens that are not allowed to -inf.
    pub(crate) fn apply(&self, logits: &mut [f32]) {
        for (chunk, &word) in logits.chunks_mut(64).zip(self.words.iter().chain(std::iter::repeat(&0))) {
            if word != u64::MAX {
                for (bit, logit) in chunk.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apply_keeps_the_allowed() {
        for vocab in [1, 63, 64, 65, 200] {
            let mut mask = TokenMask::new(vocab);
            let wanted: Vec<TokenId> = (0..vocab as TokenId).filter(|t| t % 7 == 3 || *t == 0).collect();
            wanted.iter().for_each(|&t| mask.allow(t));
            mask.allow(1_000_000);
            let mut logits = vec![1.0; vocab + 70];
            mask.apply(&mut logits);
            let kept: Vec<TokenId> = (0..logits.len() as TokenId).filter(|&t| logits[t as usize] == 1.0).collect();
            assert_eq!(kept, wanted);
            assert!((0..300).all(|t| mask.allows(t) == wanted.contains(&t)));
        }
    }
}
