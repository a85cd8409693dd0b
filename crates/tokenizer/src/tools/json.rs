//! Just as much JSON as calls need: where an object ends, and what its first keys are.

use std::borrow::Cow;

/// Nesting of arguments; what is deeper counts as broken.
const DEPTH_MAX: usize = 256;

/// Finds the end of an object whose text comes in pieces. Looks at brackets and strings alone.
#[derive(Clone, Debug, Default)]
pub(crate) struct ObjectScan {
    /// Open brackets; true for braces.
    open: Vec<bool>,
    in_string: bool,
    escaped: bool,
}

pub(crate) enum Scanned {
    /// The whole piece belongs to it.
    More,
    /// It ends before this byte.
    Ends(usize),
    /// No JSON from this byte on.
    Broken(usize),
}

impl ObjectScan {
    /// From within an object, one brace open.
    pub fn inside() -> Self {
        Self { open: vec![true], ..Self::default() }
    }

    /// Takes the next piece; the first begins with the brace, unless the scan began inside.
    pub fn push(&mut self, piece: &str) -> Scanned {
        for (at, byte) in piece.bytes().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' if self.open.len() < DEPTH_MAX => self.open.push(byte == b'{'),
                b'}' | b']' if self.open.last() == Some(&(byte == b'}')) => {
                    self.open.pop();
                    if self.open.is_empty() {
                        return Scanned::Ends(at + 1);
                    }
                }
                b' ' | b'\t' | b'\r' | b'\n' | b',' | b':' | b'+' | b'-' | b'.' => {}
                _ if byte.is_ascii_alphanumeric() => {}
                _ => return Scanned::Broken(at),
            }
        }
        Scanned::More
    }
}

/// Why reading ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Short {
    /// The text ends too soon to tell.
    More,
    Broken,
}

/// Reads from the beginning of a text that may go on. What it tells of a text it tells of every longer one.
#[derive(Clone, Copy)]
pub(crate) struct Cursor<'a> {
    pub text: &'a str,
    pub at: usize,
}

impl<'a> Cursor<'a> {
    pub fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    pub fn skip_space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    pub fn peek(&self) -> Result<u8, Short> {
        self.rest().bytes().next().ok_or(Short::More)
    }

    /// Goes past a mark if it stands here.
    pub fn take(&mut self, mark: &str) -> Result<bool, Short> {
        let rest = self.rest();
        match rest.starts_with(mark) {
            true => {
                self.at += mark.len();
                Ok(true)
            }
            false if mark.starts_with(rest) => Err(Short::More),
            false => Ok(false),
        }
    }

    pub fn expect(&mut self, mark: &str) -> Result<(), Short> {
        if self.take(mark)? { Ok(()) } else { Err(Short::Broken) }
    }

    /// A string, its escapes undone.
    pub fn string(&mut self) -> Result<Cow<'a, str>, Short> {
        let start = self.at;
        self.expect("\"")?;
        let mut escaped = false;
        for (at, byte) in self.rest().bytes().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    self.at += at + 1;
                    let quoted = &self.text[start..self.at];
                    let plain = &quoted[1..quoted.len() - 1];
                    return match plain.contains('\\') {
                        false => Ok(Cow::Borrowed(plain)),
                        true => serde_json::from_str(quoted).map(Cow::Owned).map_err(|_| Short::Broken),
                    };
                }
                _ => {}
            }
        }
        Err(Short::More)
    }

    /// Goes past any value.
    pub fn skip_value(&mut self) -> Result<(), Short> {
        match self.peek()? {
            b'"' => self.string().map(|_| ()),
            b'{' | b'[' => match ObjectScan::default().push(self.rest()) {
                Scanned::More => Err(Short::More),
                Scanned::Broken(_) => Err(Short::Broken),
                Scanned::Ends(length) => {
                    self.at += length;
                    Ok(())
                }
            },
            _ => {
                let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
                match self.rest().find(|c| !is_part(c)) {
                    None => Err(Short::More),
                    Some(0) => Err(Short::Broken),
                    Some(length) => {
                        self.at += length;
                        Ok(())
                    }
                }
            }
        }
    }
}
