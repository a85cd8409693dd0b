//! Arrays of strings.

use std::fmt;

/// Strings, one after another in one piece of memory: a vocabulary and its merges have some hundred thousand.
#[derive(Clone, Default, PartialEq)]
pub struct GgufStrings {
    text: String,
    /// String `i` is `text[ends[i - 1]..ends[i]]`.
    ends: Vec<usize>,
}

impl GgufStrings {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.ends.iter().scan(0, |start, &end| Some(&self.text[std::mem::replace(start, end)..end]))
    }

    pub(super) fn push(&mut self, string: &str) {
        self.text.push_str(string);
        self.ends.push(self.text.len());
    }
}

impl fmt::Debug for GgufStrings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
