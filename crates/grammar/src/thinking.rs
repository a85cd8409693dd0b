//! The thinking before a grammar: free text up to the one that ends it.

use lingqu_sampler::TokenMask;
use lingqu_types::TokenId;

use crate::GrammarError;
use crate::constraint::Phase;
use crate::vocabulary::Vocabulary;

const END_BYTES_MAX: usize = 64;

/// How to find the end of the thinking, token by token, as an automaton of Knuth, Morris and Pratt over its bytes.
pub(crate) struct Thinking {
    open: Option<TokenId>,
    end: Vec<u8>,
    /// For each prefix of `end`, the length of its longest proper border.
    border: Vec<usize>,
    /// For each number of matched bytes: the tokens that would end the thinking and begin the answer at once, so that
    /// the answer's first bytes would escape the grammar.
    straddling: Vec<Vec<TokenId>>,
}

impl Thinking {
    /// `open`: the token that may open it, if that is up to the reply.
    pub fn new(vocabulary: &Vocabulary, open: Option<TokenId>, end: &str) -> Result<Self, GrammarError> {
        let end = end.as_bytes().to_vec();
        if end.is_empty() || end.len() > END_BYTES_MAX {
            let problem = format!("the text that ends it has {} bytes, not 1..={END_BYTES_MAX}", end.len());
            return Err(GrammarError::Invalid { what: "reasoning", problem });
        }
        let mut border = vec![0; end.len() + 1];
        let mut length = 0;
        for at in 1..end.len() {
            while length > 0 && end[at] != end[length] {
                length = border[length];
            }
            length += usize::from(end[at] == end[length]);
            border[at + 1] = length;
        }
        let mut this = Self { open, end, border, straddling: Vec::new() };
        this.straddling = (0..this.end.len()).map(|matched| this.straddling(vocabulary, matched)).collect();
        Ok(this)
    }

    pub fn open(&self) -> Option<TokenId> {
        self.open
    }

    fn straddling(&self, vocabulary: &Vocabulary, matched: usize) -> Vec<TokenId> {
        let last = self.end[self.end.len() - 1];
        let ends_within = |&token: &TokenId| {
            let bytes = vocabulary.bytes(token);
            let found = bytes.contains(&last).then(|| self.find(matched, bytes)).flatten();
            found.is_some_and(|at| !bytes[at..].trim_ascii().is_empty())
        };
        (0..vocabulary.len() as TokenId).filter(ends_within).collect()
    }

    /// Behind which of these bytes the end is complete.
    fn find(&self, mut matched: usize, bytes: &[u8]) -> Option<usize> {
        for (at, byte) in bytes.iter().enumerate() {
            matched = self.advance(matched, *byte);
            if matched == self.end.len() {
                return Some(at + 1);
            }
        }
        None
    }

    fn advance(&self, mut matched: usize, byte: u8) -> usize {
        while matched > 0 && self.end[matched] != byte {
            matched = self.border[matched];
        }
        matched + usize::from(self.end[matched] == byte)
    }

    /// Everything but the tokens that end a reply: it must not end before its grammar does.
    pub fn allow(&self, vocabulary: &Vocabulary, matched: u16, mask: &mut TokenMask) {
        for (word, free) in mask.words_mut().iter_mut().zip(vocabulary.free()) {
            *word |= free;
        }
        for &token in &self.straddling[usize::from(matched)] {
            mask.words_mut()[token as usize / 64] &= !(1 << (token % 64));
        }
    }

    /// The phase behind a token.
    pub fn step(&self, vocabulary: &Vocabulary, matched: u16, token: TokenId) -> Result<Phase, String> {
        let bytes = vocabulary.bytes(token);
        match self.find(usize::from(matched), bytes) {
            Some(at) if bytes[at..].trim_ascii().is_empty() => Ok(Phase::Gap { tokens: 0 }),
            Some(_) => Err(format!("token {token} begins the answer within the thinking")),
            None => {
                let matched = bytes.iter().fold(usize::from(matched), |matched, byte| self.advance(matched, *byte));
                Ok(Phase::Thinking { matched: matched as u16 })
            }
        }
    }
}
