//! Where one gRPC message ends and the next begins.

/// Of each message: a byte of flags and four of length.
const HEADER_BYTES: usize = 5;

/// Follows the messages of a stream as their bytes come, in pieces of any size.
#[derive(Debug, Default)]
pub struct Framing {
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    /// Of the current message, once its header is whole.
    body_left: usize,
    /// That have come of the current message.
    bytes: usize,
}

impl Framing {
    /// Takes the next bytes; returns the sizes of the messages that are whole now, put together.
    pub fn advance(&mut self, mut data: &[u8]) -> usize {
        let mut whole = 0;
        while !data.is_empty() {
            let taken = match HEADER_BYTES - self.header_bytes {
                0 => {
                    let taken = data.len().min(self.body_left);
                    self.body_left -= taken;
                    taken
                }
                missing => {
                    let taken = data.len().min(missing);
                    self.header[self.header_bytes..][..taken].copy_from_slice(&data[..taken]);
                    self.header_bytes += taken;
                    if self.header_bytes == HEADER_BYTES {
                        let [_, length @ ..] = self.header;
                        self.body_left = u32::from_be_bytes(length) as usize;
                    }
                    taken
                }
            };
            data = &data[taken..];
            self.bytes += taken;
            if self.header_bytes == HEADER_BYTES && self.body_left == 0 {
                whole += self.bytes;
                *self = Self::default();
            }
        }
        whole
    }

    /// That have come of a message that is not whole.
    pub fn bytes_within(&self) -> usize {
        self.bytes
    }

    /// A message has begun and is not whole.
    pub fn is_within(&self) -> bool {
        self.bytes > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_followed_in_pieces_of_any_size() {
        let sizes = [0usize, 1, 300, 0, 7];
        let message = |&size: &usize| [&[0u8][..], &(size as u32).to_be_bytes(), &vec![9; size]].concat();
        let stream: Vec<u8> = sizes.iter().flat_map(message).collect();
        let ends: Vec<usize> = sizes
            .iter()
            .scan(0, |end, size| {
                *end += HEADER_BYTES + size;
                Some(*end)
            })
            .collect();
        for piece in 1..stream.len() {
            let mut framing = Framing::default();
            let (mut come, mut whole) = (0, 0);
            for data in stream.chunks(piece) {
                come += data.len();
                whole += framing.advance(data);
                let expected = ends.iter().copied().filter(|&end| end <= come).max().unwrap_or(0);
                assert_eq!((whole, framing.bytes_within()), (expected, come - expected), "{piece} {come}");
            }
        }
    }
}
