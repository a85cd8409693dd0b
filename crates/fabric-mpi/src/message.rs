//! What ranks say to each other below the links: a head, then bytes of a link's stream if it is DATA.
//!
//! ```text
//! 0   magic    "LQMP"
//! 4   kind     u8    CALL: a new link. DATA: bytes of one. CREDIT: so many were read. CLOSE: no more. END: of the job
//! 5   by       u8    1 if the sender is the side that called
//! 8   number   u32   of the link, given by the side that called
//! 12  credit   u32   bytes that were read, for CREDIT
//! ```

/// Bytes of a link that may be on their way or unread.
pub const WINDOW_BYTES: usize = 16 << 20;
/// Bytes of one message: longer ones are cut, so that copies at both ends overlap.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;
/// What a message counts of the window at least, so that their number is bounded too.
const COST_MIN: usize = 1024;
pub(crate) const HEAD_BYTES: usize = 16;
const MAGIC: [u8; 4] = *b"LQMP";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Call,
    Data,
    Credit(u32),
    Close,
    End,
}

/// One end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LinkId {
    /// The rank at the other end.
    pub peer: usize,
    /// Whether this end called.
    pub calls: bool,
    pub number: u32,
}

/// What `bytes` of a stream, sent as one message, take of the window.
pub(crate) fn cost(bytes: usize) -> usize {
    bytes.max(COST_MIN)
}

/// With room for `bytes` after the head.
pub(crate) fn encode(kind: Kind, link: LinkId, bytes: usize) -> Vec<u8> {
    let (code, credit) = match kind {
        Kind::Call => (1, 0),
        Kind::Data => (2, 0),
        Kind::Credit(credit) => (3, credit),
        Kind::Close => (4, 0),
        Kind::End => (5, 0),
    };
    let mut message = Vec::with_capacity(HEAD_BYTES + bytes);
    message.extend(MAGIC);
    message.extend([code, link.calls.into(), 0, 0]);
    message.extend(link.number.to_le_bytes());
    message.extend(credit.to_le_bytes());
    message
}

/// The kind of a message from `peer`, and which end of a link it is for.
pub(crate) fn decode(message: &[u8], peer: usize) -> Option<(Kind, LinkId)> {
    let head: &[u8; HEAD_BYTES] = message.first_chunk()?;
    let u32_at = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let is_data = head[4] == 2;
    if head[..4] != MAGIC || head[5] > 1 || (!is_data && message.len() > HEAD_BYTES) {
        return None;
    }
    let kind = match head[4] {
        1 => Kind::Call,
        2 => Kind::Data,
        3 => Kind::Credit(u32_at(12)),
        4 => Kind::Close,
        5 => Kind::End,
        _ => return None,
    };
    Some((kind, LinkId { peer, calls: head[5] == 0, number: u32_at(8) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_come_back_for_the_other_end() {
        let ours = LinkId { peer: 3, calls: true, number: 1 << 30 };
        let theirs = LinkId { peer: 0, calls: false, number: 1 << 30 };
        for kind in [Kind::Call, Kind::Data, Kind::Credit(77), Kind::Close, Kind::End] {
            let message = encode(kind, ours, 0);
            assert_eq!((message.len(), decode(&message, 0)), (HEAD_BYTES, Some((kind, theirs))));
            assert_eq!(decode(&message[..HEAD_BYTES - 1], 0), None);
        }
        let sound = encode(Kind::Close, ours, 0);
        let check = |at: usize, byte: u8| {
            let mut message = sound.clone();
            message[at] = byte;
            assert_eq!(decode(&message, 0), None, "byte {at}");
        };
        check(0, b'l');
        check(4, 0);
        check(4, 6);
        check(5, 2);
        assert_eq!(decode(&[&sound[..], b"more"].concat(), 0), None);
    }
}
