//! The conformance suite: one table of checks that every fabric passes.
//!
//! It uses nothing but the traits, so it runs alike between threads, processes and ranks. One side runs [`serve`],
//! which does what its caller asks for; the other side goes through the table with [`run`]. What it checks:
//!
//! | check | law |
//! |---|---|
//! | answer | the greeting is judged and answered; a longer one than allowed is not sent |
//! | refusal | who is not wanted is told why |
//! | stranger | who has another secret gets nothing |
//! | nobody | a call that nobody takes ends in time |
//! | sizes | messages of any size and in any parts come back whole |
//! | order | messages arrive in the order sent, whichever side sends how many |
//! | bounds | a message longer than the receiver allows, or than any may be, is an error |
//! | silence | a peer that says nothing, or takes nothing, does not move a deadline |
//! | late | what has arrived is received although the deadline has passed |
//! | close | a peer that hangs up is known to be gone |
//! | many | links do not touch each other, and are free for others once closed |
//!
//! What a network does to bytes on their way is not in reach of the traits; frames see it (`pipe.rs` tests every bit).

use std::time::{Duration, Instant};

use crate::{
    FRAME_BYTES_MAX, Fabric, FabricError, GREETING_BYTES_MAX, HEAD_BYTES, Joined, Link, Listener, Result, Tag,
};

/// Nothing that works takes this long.
const PATIENCE: Duration = Duration::from_secs(60);
/// What hangs is found out after this.
const SHORT: Duration = Duration::from_millis(300);
/// As of a step of many rows.
const BIG_BYTES: usize = 24 << 20;

/// What a caller can ask the other side for, by the kind of its message.
const ECHO: u16 = 1;
const SAY_NOTHING: u16 = 2;
const HANG_UP: u16 = 3;
/// As many messages as the four bytes say: the n-th has n bytes, all n.
const COUNT_UP: u16 = 4;
/// Reads nothing any more.
const DEAF: u16 = 5;

/// What is checked.
pub struct Subject<'a> {
    pub fabric: &'a dyn Fabric,
    /// The same with another secret.
    pub stranger: &'a dyn Fabric,
    /// Where [`serve`] runs.
    pub address: &'a str,
    /// Where nobody takes calls.
    pub nobody: &'a str,
}

/// Does what callers ask for, each on a thread of its own, until no call can be taken any more; then tells why.
pub fn serve(listener: &dyn Listener) -> FabricError {
    loop {
        let caller = match listener.accept() {
            Ok(caller) => caller,
            Err(FabricError::Closed) => continue,
            Err(error) => return error,
        };
        std::thread::spawn(move || {
            let mut judge = |greeting: &[u8]| match greeting {
                b"unwanted" => Err("not you".to_owned()),
                greeting => Ok(greeting.iter().rev().copied().collect()),
            };
            // How a link ends is seen on the other side.
            let _ = caller.admit(&mut judge, soon()).and_then(|mut link| oblige(&mut *link));
        });
    }
}

fn oblige(link: &mut dyn Link) -> Result<()> {
    let mut reply = Vec::new();
    loop {
        let (tag, message) = link.receive(FRAME_BYTES_MAX, soon())?;
        match tag.kind {
            ECHO => {
                reply.clear();
                reply.extend_from_slice(message);
                link.send(tag, &[&reply], soon())?;
            }
            COUNT_UP => {
                let count = message.try_into().map_or(0, u32::from_le_bytes);
                for n in 0..count {
                    link.send(Tag { sequence: n.into(), ..tag }, &[&vec![n as u8; n as usize]], soon())?;
                }
            }
            DEAF => std::thread::sleep(PATIENCE),
            SAY_NOTHING => {}
            _ => return Ok(()), // HANG_UP
        }
    }
}

/// Goes through the table; what failed, by name.
pub fn run(subject: &Subject<'_>) -> Vec<String> {
    let table: [(&str, Check); 14] = [
        ("answer", answer),
        ("refusal", refusal),
        ("stranger", stranger),
        ("nobody", nobody),
        ("sizes", sizes),
        ("big", big),
        ("order", order),
        ("bounds", bounds),
        ("silence", silence),
        ("deaf", deaf),
        ("late", late),
        ("close", close),
        ("many at once", many_at_once),
        ("many in turn", many_in_turn),
    ];
    let outcomes = table.iter().map(|(name, check)| check(subject).err().map(|problem| format!("{name}: {problem}")));
    outcomes.flatten().collect()
}

type Outcome = Result<(), String>;
type Check = fn(&Subject<'_>) -> Outcome;

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

fn tag(kind: u16, sequence: u64) -> Tag {
    Tag { kind, epoch: 7, sequence }
}

fn text(error: FabricError) -> String {
    error.to_string()
}

fn ensure(holds: bool, problem: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(problem()) }
}

/// The error that a call must end with.
fn failure<T>(outcome: Result<T>) -> Result<FabricError, String> {
    outcome.err().ok_or_else(|| "it went well".into())
}

fn link(subject: &Subject<'_>) -> Result<Box<dyn Link>, String> {
    let joined = subject.fabric.connect(subject.address, b"", soon());
    joined.map(|joined| joined.link).map_err(|error| format!("cannot connect: {error}"))
}

/// Sends a message to be echoed, and looks at what comes.
fn echo(link: &mut dyn Link, sequence: u64, parts: &[&[u8]]) -> Outcome {
    link.send(tag(ECHO, sequence), parts, soon()).map_err(text)?;
    echoed(link, sequence, &parts.concat())
}

fn echoed(link: &mut dyn Link, sequence: u64, expected: &[u8]) -> Outcome {
    let (found, message) = link.receive(expected.len(), soon()).map_err(text)?;
    let bytes = expected.len();
    ensure(found == tag(ECHO, sequence), || format!("{found:?} in place of {sequence}"))?;
    ensure(message == expected, || format!("message {sequence} of {bytes} bytes came back otherwise"))
}

/// Bytes without a pattern that a lost or doubled block would keep.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = bytes as u64 + 1;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 56) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

fn answer(subject: &Subject<'_>) -> Outcome {
    for length in [0, 5, GREETING_BYTES_MAX] {
        let greeting = noise(length);
        let Joined { mut link, answer } = subject.fabric.connect(subject.address, &greeting, soon()).map_err(text)?;
        ensure(answer.iter().eq(greeting.iter().rev()), || format!("another answer to {length} bytes"))?;
        echo(&mut *link, 1, &[b"and then"])?;
    }
    let long = vec![0; GREETING_BYTES_MAX + 1];
    let error = failure(subject.fabric.connect(subject.address, &long, soon()))?;
    ensure(matches!(error, FabricError::TooLong { .. }), || text(error))
}

fn refusal(subject: &Subject<'_>) -> Outcome {
    let error = failure(subject.fabric.connect(subject.address, b"unwanted", soon()))?;
    ensure(matches!(&error, FabricError::Refused(why) if why == "not you"), || text(error))
}

fn stranger(subject: &Subject<'_>) -> Outcome {
    let error = failure(subject.stranger.connect(subject.address, b"", soon()))?;
    ensure(matches!(error, FabricError::Unauthenticated), || text(error))
}

fn nobody(subject: &Subject<'_>) -> Outcome {
    failure(subject.fabric.connect(subject.nobody, b"", Instant::now() + SHORT))?;
    let error = failure(subject.fabric.connect("no address at all", b"", soon()))?;
    ensure(matches!(error, FabricError::Address { .. }), || text(error))
}

fn sizes(subject: &Subject<'_>) -> Outcome {
    let mut link = link(subject)?;
    for (sequence, bytes) in [0, 1, HEAD_BYTES, 4096, 65_535, 65_536, 1 << 20, 7].into_iter().enumerate() {
        let message = noise(bytes);
        let (a, b) = message.split_at(bytes / 3);
        echo(&mut *link, sequence as u64, &[b"", a, b"", b, b""])?;
    }
    Ok(())
}

fn big(subject: &Subject<'_>) -> Outcome {
    echo(&mut *link(subject)?, 1, &[&noise(BIG_BYTES)])
}

fn order(subject: &Subject<'_>) -> Outcome {
    let mut link = link(subject)?;
    for sequence in 0..100 {
        link.send(tag(ECHO, sequence), &[&noise(sequence as usize)], soon()).map_err(text)?;
    }
    for sequence in 0..100 {
        echoed(&mut *link, sequence, &noise(sequence as usize))?;
    }
    let count: u32 = 2000;
    link.send(tag(COUNT_UP, 0), &[&count.to_le_bytes()], soon()).map_err(text)?;
    for n in 0..count {
        let (found, message) = link.receive(count as usize, soon()).map_err(text)?;
        let is_right = message.len() == n as usize && message.iter().all(|byte| *byte == n as u8);
        ensure(found == tag(COUNT_UP, n.into()) && is_right, || format!("{found:?} in place of {n}"))?;
    }
    Ok(())
}

fn bounds(subject: &Subject<'_>) -> Outcome {
    let mut own = link(subject)?;
    own.send(tag(ECHO, 1), &[&[1; 100]], soon()).map_err(text)?;
    let error = failure(own.receive(99, soon()).map(|_| ()))?;
    ensure(matches!(error, FabricError::TooLong { bytes: 100, bytes_max: 99 }), || text(error))?;

    let part = vec![0; 1 << 20];
    let parts = vec![&part[..]; (FRAME_BYTES_MAX >> 20) + 1];
    let error = failure(link(subject)?.send(tag(ECHO, 1), &parts, soon()))?;
    ensure(matches!(error, FabricError::TooLong { .. }), || text(error))
}

fn silence(subject: &Subject<'_>) -> Outcome {
    let mut link = link(subject)?;
    link.send(tag(SAY_NOTHING, 1), &[b"well?"], soon()).map_err(text)?;
    let error = failure(link.receive(100, Instant::now() + SHORT).map(|_| ()))?;
    ensure(matches!(error, FabricError::TimedOut), || text(error))
}

fn deaf(subject: &Subject<'_>) -> Outcome {
    let mut link = link(subject)?;
    link.send(tag(DEAF, 1), &[], soon()).map_err(text)?;
    // More than whatever lies between the two can hold.
    let (part, deadline) = (vec![0; 1 << 20], Instant::now() + SHORT);
    let mut send = || (0..256).try_for_each(|n| link.send(tag(ECHO, n), &[&part], deadline));
    let error = failure(send())?;
    ensure(matches!(error, FabricError::TimedOut), || text(error))
}

fn late(subject: &Subject<'_>) -> Outcome {
    let mut link = link(subject)?;
    link.send(tag(ECHO, 1), &[b"first"], soon()).map_err(text)?;
    link.send(tag(ECHO, 2), &[], soon()).map_err(text)?;
    echoed(&mut *link, 1, b"first")?;
    // Nothing tells when the second one is there: whoever asks often enough finds it, with no time to wait.
    let end = soon();
    loop {
        match link.receive(0, Instant::now()) {
            Ok((found, [])) => return ensure(found == tag(ECHO, 2), || format!("{found:?}")),
            Ok(_) => return Err("another message".into()),
            Err(FabricError::TimedOut) if Instant::now() < end => {}
            Err(error) => return Err(text(error)),
        }
    }
}

fn close(subject: &Subject<'_>) -> Outcome {
    let mut link = link(subject)?;
    link.send(tag(HANG_UP, 1), &[], soon()).map_err(text)?;
    let error = failure(link.receive(100, soon()).map(|_| ()))?;
    ensure(matches!(error, FabricError::Closed), || text(error))?;
    // Nor can it be told anything; the first messages may still seem to go well.
    let (part, deadline) = (vec![0; 1 << 20], Instant::now() + SHORT);
    let error = failure((0..256).try_for_each(|n| link.send(tag(ECHO, n), &[&part], deadline)))?;
    ensure(matches!(error, FabricError::Closed | FabricError::TimedOut), || text(error))
}

fn many_at_once(subject: &Subject<'_>) -> Outcome {
    let mut links = (0..8).map(|_| link(subject)).collect::<Result<Vec<_>, _>>()?;
    for round in 0..4 {
        for (n, link) in links.iter_mut().enumerate() {
            link.send(tag(ECHO, round), &[&noise(1000 * n + round as usize)], soon()).map_err(text)?;
        }
        for (n, link) in links.iter_mut().enumerate().rev() {
            echoed(&mut **link, round, &noise(1000 * n + round as usize))?;
        }
    }
    // One less is nothing to the others.
    links.swap_remove(3);
    links.iter_mut().try_for_each(|link| echo(&mut **link, 9, &[b"still here"]))
}

fn many_in_turn(subject: &Subject<'_>) -> Outcome {
    (0..200).try_for_each(|n| echo(&mut *link(subject)?, n, &[&noise(n as usize)]))
}
