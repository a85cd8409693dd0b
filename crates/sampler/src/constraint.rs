//! What a grammar leaves to the sampler.

use lingqu_types::TokenId;

use crate::TokenMask;

/// A grammar and where in it one generation stands. Deterministic: the same tokens lead to the same masks.
pub trait Constraint: Send {
    /// Sets in `mask`, which comes cleared, the tokens that may come next. Where the text may end, the model's
    /// end-of-sequence tokens are among them.
    ///
    /// # Errors
    /// The grammar's bounds are exceeded: the request fails with this text.
    fn allow(&mut self, mask: &mut TokenMask) -> Result<(), String>;

    /// Goes on past a token that was drawn. A token that the last mask did not allow is an error.
    ///
    /// # Errors
    /// As [`Constraint::allow`].
    fn accept(&mut self, token: TokenId) -> Result<(), String>;

    /// Nothing may follow any more: the generation ends here, without an end-of-sequence token.
    fn is_over(&self) -> bool;

    /// Takes the last so many accepted tokens back: drafts that did not hold.
    ///
    /// # Errors
    /// As [`Constraint::allow`].
    fn roll_back(&mut self, tokens: usize) -> Result<(), String>;
}
