//! The table of token ids: the bytes each one stands for, and which are special.

use lingqu_types::TokenId;

/// Ids lie below this. The largest published vocabularies have about 260,000; a file that names an id of four
/// thousand million must not make us allocate for it.
pub(crate) const VOCAB_SIZE_MAX: usize = 1 << 21;

/// Bytes of one token. The longest in published vocabularies have a few hundred (runs of spaces or dashes).
pub(crate) const TOKEN_BYTES_MAX: usize = 1 << 12;

/// Immutable after loading.
pub(crate) struct Vocabulary {
    /// Bytes of all tokens, one after another.
    bytes: Vec<u8>,
    /// Token `i` is `bytes[ends[i - 1]..ends[i]]`. `[vocab]`
    ends: Vec<u32>,
    /// `[vocab]`
    kinds: Vec<TokenKind>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenKind {
    /// No token has this id, or it is padding: it stands for no text.
    Absent,
    Ordinary,
    /// Found in text before BPE runs, and shown like text: `<think>`.
    Added,
    /// Control: found in text where special tokens are parsed, left out of decoded text where they are skipped.
    Special,
}

impl Vocabulary {
    /// `entries` gives (id, content as it stands in the file, kind); a later entry of an id wins.
    /// Contents are at most `TOKEN_BYTES_MAX` long and ids below `VOCAB_SIZE_MAX`: the readers check.
    pub(crate) fn new<'a>(entries: impl Iterator<Item = (TokenId, &'a str, TokenKind)>) -> Self {
        let mut table: Vec<(&str, TokenKind)> = Vec::new();
        for (id, content, kind) in entries {
            let index = id as usize;
            if index >= table.len() {
                table.resize(index + 1, ("", TokenKind::Absent));
            }
            table[index] = (content, kind);
        }
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(table.len());
        for &(content, kind) in &table {
            if kind != TokenKind::Absent {
                push_token_bytes(content, &mut bytes);
            }
            ends.push(
                u32::try_from(bytes.len()).expect("at most 2^21 ids of 2^12 bytes are below 2^33; readers bound"),
            );
        }
        Self { bytes, ends, kinds: table.iter().map(|&(_, kind)| kind).collect() }
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// `None` past the vocabulary and for ids that no token has.
    pub(crate) fn token_bytes(&self, id: TokenId) -> Option<&[u8]> {
        let index = id as usize;
        match self.kinds.get(index)? {
            TokenKind::Absent => None,
            _ => {
                let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
                Some(&self.bytes[start..self.ends[index] as usize])
            }
        }
    }

    pub(crate) fn kind(&self, id: TokenId) -> TokenKind {
        self.kinds.get(id as usize).copied().unwrap_or(TokenKind::Absent)
    }
}

/// Appends the bytes a token stands for. As Hugging Face's ByteLevel decoder has it: a token written wholly in the
/// byte alphabet stands for those bytes; any other (an added token such as `<｜User｜>`) for its own UTF-8.
fn push_token_bytes(content: &str, out: &mut Vec<u8>) {
    let start = out.len();
    for c in content.chars() {
        match BYTE_OF.get(c as usize) {
            Some(&Some(byte)) => out.push(byte),
            _ => {
                out.truncate(start);
                out.extend_from_slice(content.as_bytes());
                return;
            }
        }
    }
}

/// GPT-2's printable stand-ins for bytes: visible Latin-1 stands for itself, the other 68 bytes, in order, for U+0100
/// and up (`bytes_to_unicode` in the GPT-2 release). By character.
const BYTE_OF: [Option<u8>; 0x144] = {
    let (mut of, mut byte, mut next) = ([None; 0x144], 0, 0x100);
    while byte < 256 {
        let visible = matches!(byte as u8, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        of[if visible { byte } else { next }] = Some(byte as u8);
        next += !visible as usize;
        byte += 1;
    }
    of
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_become_bytes() {
        let check = |content: &str, bytes: &[u8]| {
            let v = Vocabulary::new([(1, content, TokenKind::Ordinary)].into_iter());
            assert_eq!(v.token_bytes(1), Some(bytes), "{content}");
            assert_eq!((v.token_bytes(0), v.token_bytes(2), v.len()), (None, None, 2));
        };
        check("Ġhello", b" hello");
        check("Ċ", b"\n");
        check("ä½ł", "你".as_bytes());
        check("ä½", &[0xe4, 0xbd]);
        check("<think>", b"<think>");
        check("<｜User｜>", "<｜User｜>".as_bytes());
        check("ĠĀ", &[0x20, 0x00]);
    }

    #[test]
    fn alphabet_covers_every_byte_once() {
        let mut seen: Vec<u8> = BYTE_OF.into_iter().flatten().collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..=255).collect::<Vec<u8>>());
    }
}
