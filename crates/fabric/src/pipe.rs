//! From bytes to messages: what fabrics that carry bytes in order have in common.

use std::io::IoSlice;
use std::time::Instant;

use crate::frame::{HEAD_BYTES, Head};
use crate::{Joined, Judge, Link, Result, Secret, Tag, handshake};

/// An ordered way for bytes to one peer and back. A new fabric brings this; frames and handshake are [`join`]'s and
/// [`admit`]'s.
pub trait Pipe: Send {
    /// Writes all parts, one after the other. Returns once they are on their way.
    fn write(&mut self, parts: &mut [IoSlice<'_>], deadline: Instant) -> Result<()>;

    /// Reads until `bytes` are full. A peer that sends byte after byte does not move the deadline; what has arrived is
    /// read although it has passed.
    fn read(&mut self, bytes: &mut [u8], deadline: Instant) -> Result<()>;
}

/// The caller's side of a new pipe: both sides prove the secret, the peer judges `greeting`.
pub fn join(pipe: impl Pipe + 'static, secret: &Secret, greeting: &[u8], deadline: Instant) -> Result<Joined> {
    let mut link = Framed { pipe, message: Vec::new() };
    let answer = handshake::call(&mut link, secret, greeting, deadline)?;
    Ok(Joined { link: Box::new(link), answer })
}

/// The other side of it.
pub fn admit(pipe: impl Pipe + 'static, secret: &Secret, judge: Judge<'_>, deadline: Instant) -> Result<Box<dyn Link>> {
    let mut link = Framed { pipe, message: Vec::new() };
    handshake::answer(&mut link, secret, judge, deadline)?;
    Ok(Box::new(link))
}

struct Framed<P> {
    pipe: P,
    /// The last message; grows to the longest that was allowed and came.
    message: Vec<u8>,
}

impl<P: Pipe> Link for Framed<P> {
    fn send(&mut self, tag: Tag, parts: &[&[u8]], deadline: Instant) -> Result<()> {
        let head = Head::of(tag, parts)?.encode();
        let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(1 + parts.len());
        slices.push(IoSlice::new(&head));
        slices.extend(parts.iter().map(|part| IoSlice::new(part)));
        self.pipe.write(&mut slices, deadline)
    }

    fn receive(&mut self, bytes_max: usize, deadline: Instant) -> Result<(Tag, &[u8])> {
        let mut head = [0; HEAD_BYTES];
        self.pipe.read(&mut head, deadline)?;
        let head = Head::decode(&head, bytes_max)?;
        if self.message.len() < head.length {
            self.message.resize(head.length, 0);
        }
        let message = &mut self.message[..head.length];
        self.pipe.read(message, deadline)?;
        head.check(message)?;
        Ok((head.tag, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FabricError;

    /// What was written comes back, with one bit the other way around if so asked.
    #[derive(Default)]
    struct Garbling {
        bytes: Vec<u8>,
        bit: Option<usize>,
    }

    impl Pipe for Garbling {
        fn write(&mut self, parts: &mut [IoSlice<'_>], _: Instant) -> Result<()> {
            parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
            if let Some(bit) = self.bit {
                self.bytes[bit / 8] ^= 1 << (bit % 8);
            }
            Ok(())
        }

        fn read(&mut self, bytes: &mut [u8], _: Instant) -> Result<()> {
            if self.bytes.len() < bytes.len() {
                return Err(FabricError::Closed);
            }
            self.bytes.drain(..bytes.len()).zip(bytes).for_each(|(from, to)| *to = from);
            Ok(())
        }
    }

    fn sent_and_received(bit: Option<usize>) -> Result<(Tag, Vec<u8>)> {
        let mut link = Framed { pipe: Garbling { bit, ..Garbling::default() }, message: Vec::new() };
        let now = Instant::now();
        link.send(Tag { kind: 2, epoch: 3, sequence: 4 }, &[b"a mes", b"", b"sage"], now)?;
        link.receive(100, now).map(|(tag, message)| (tag, message.to_vec()))
    }

    #[test]
    fn every_flipped_bit_of_a_frame_is_seen() {
        let (tag, message) = sent_and_received(None).expect("sound");
        assert_eq!((tag, &message[..]), (Tag { kind: 2, epoch: 3, sequence: 4 }, &b"a message"[..]));
        for bit in 0..(HEAD_BYTES + message.len()) * 8 {
            let error = sent_and_received(Some(bit)).expect_err("a flipped bit");
            assert!(matches!(error, FabricError::Corrupt(_)), "bit {bit}: {error}");
        }
    }
}
