//! How two processes prove to each other that they hold the same secret, before either says anything else.
//!
//! ```text
//! caller  -> Hello
//! callee  <- Challenge  a random number
//! caller  -> Proof      another random number; MAC("caller", both numbers, greeting); the greeting
//! callee  <- Welcome    MAC("callee", both numbers, greeting, answer); the answer
//!         or Refused    the same over the reason
//! ```
//!
//! The caller proves itself first: whoever lacks the secret gets a random number and a closed connection. Labels keep a
//! proof from being sent back as its own answer, random numbers from being used twice. What follows is checksummed,
//! not encrypted: against those who can change packets on the way a cluster needs a network of its own, or TLS.

use std::time::Instant;

use crate::frame::{KIND_MAX, Tag};
use crate::hmac::{MAC_BYTES, equal, mac_of_parts};
use crate::{FabricError, Judge, Link, Result, Secret};

/// Longest greeting and longest answer.
pub const GREETING_BYTES_MAX: usize = 4096;

const HELLO: u16 = KIND_MAX + 1;
const CHALLENGE: u16 = KIND_MAX + 2;
const PROOF: u16 = KIND_MAX + 3;
const WELCOME: u16 = KIND_MAX + 4;
const REFUSED: u16 = KIND_MAX + 5;

const NONCE_BYTES: usize = 32;

fn nonce() -> Result<[u8; NONCE_BYTES]> {
    let mut bytes = [0; NONCE_BYTES];
    let unable = |e: getrandom::Error| FabricError::Io { what: "get random numbers", source: std::io::Error::other(e) };
    getrandom::fill(&mut bytes).map_err(unable)?;
    Ok(bytes)
}

fn send(link: &mut dyn Link, kind: u16, parts: &[&[u8]], deadline: Instant) -> Result<()> {
    link.send(Tag { kind, epoch: 0, sequence: 0 }, parts, deadline)
}

/// The caller's side: the answer to the greeting.
pub(crate) fn call(link: &mut dyn Link, secret: &Secret, greeting: &[u8], deadline: Instant) -> Result<Vec<u8>> {
    if greeting.len() > GREETING_BYTES_MAX {
        return Err(FabricError::TooLong { bytes: greeting.len(), bytes_max: GREETING_BYTES_MAX });
    }
    send(link, HELLO, &[], deadline)?;
    let (tag, theirs) = link.receive(NONCE_BYTES, deadline).map_err(hung_up)?;
    if tag.kind != CHALLENGE || theirs.len() != NONCE_BYTES {
        return Err(FabricError::Corrupt("no challenge"));
    }
    let (ours, theirs) = (nonce()?, theirs.to_vec());
    let proof = mac_of_parts(secret.bytes(), &[b"caller", &theirs, &ours, greeting]);
    send(link, PROOF, &[&ours, &proof, greeting], deadline)?;
    let (tag, reply) = link.receive(MAC_BYTES + GREETING_BYTES_MAX, deadline).map_err(hung_up)?;
    let (their_proof, answer) = reply.split_at_checked(MAC_BYTES).ok_or(FabricError::Corrupt("no welcome"))?;
    let label: &[u8] = match tag.kind {
        WELCOME => b"callee welcomes",
        REFUSED => b"callee refuses",
        _ => return Err(FabricError::Corrupt("no welcome")),
    };
    if !equal(their_proof, &mac_of_parts(secret.bytes(), &[label, &theirs, &ours, greeting, answer])) {
        return Err(FabricError::Unauthenticated);
    }
    match tag.kind {
        WELCOME => Ok(answer.to_vec()),
        _ => Err(FabricError::Refused(String::from_utf8_lossy(answer).into_owned())),
    }
}

/// A peer that finds our proof wrong says nothing.
fn hung_up(error: FabricError) -> FabricError {
    match error {
        FabricError::Closed => FabricError::Unauthenticated,
        error => error,
    }
}

/// The callee's side.
pub(crate) fn answer(link: &mut dyn Link, secret: &Secret, judge: Judge<'_>, deadline: Instant) -> Result<()> {
    let (tag, _) = link.receive(0, deadline)?;
    if tag.kind != HELLO {
        return Err(FabricError::Corrupt("no hello"));
    }
    let ours = nonce()?;
    send(link, CHALLENGE, &[&ours], deadline)?;
    let (tag, reply) = link.receive(NONCE_BYTES + MAC_BYTES + GREETING_BYTES_MAX, deadline)?;
    let parts = reply.split_at_checked(NONCE_BYTES).filter(|_| tag.kind == PROOF);
    let parts = parts.and_then(|(theirs, rest)| Some((theirs, rest.split_at_checked(MAC_BYTES)?)));
    let Some((theirs, (proof, greeting))) = parts else { return Err(FabricError::Corrupt("no proof")) };
    if !equal(proof, &mac_of_parts(secret.bytes(), &[b"caller", &ours, theirs, greeting])) {
        return Err(FabricError::Unauthenticated);
    }
    let verdict = judge(greeting);
    let (kind, label, text): (u16, &[u8], &[u8]) = match &verdict {
        Ok(answer) => (WELCOME, b"callee welcomes", answer),
        Err(reason) => (REFUSED, b"callee refuses", reason.as_bytes()),
    };
    let text = &text[..text.len().min(GREETING_BYTES_MAX)];
    let proof = mac_of_parts(secret.bytes(), &[label, &ours, theirs, greeting, text]);
    send(link, kind, &[&proof, text], deadline)?;
    verdict.map(|_| ()).map_err(FabricError::Refused)
}
