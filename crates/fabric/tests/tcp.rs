//! Links over loopback, sound and harmed.

use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lingqu_fabric::{Fabric, FabricError, HEAD_BYTES, Joined, Result, Secret, Tag, TcpFabric};
use lingqu_testkit::proxy::{Fault, FaultyProxy, From, Harm};
use lingqu_testkit::rng::Rng;

const SECRET: &str = "an open secret of tests";
/// Nothing that works takes this long.
const PATIENCE: Duration = Duration::from_secs(20);
/// What hangs is found out after this.
const SHORT: Duration = Duration::from_millis(200);

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

fn fabric(secret: &str) -> TcpFabric {
    TcpFabric::new(Secret::new(secret.as_bytes()).expect("long enough"))
}

/// Takes one call, then sends every message back until the link ends; tells how it ended.
struct Echo {
    address: String,
    end: Receiver<FabricError>,
    thread: JoinHandle<()>,
}

impl Echo {
    fn start(secret: &str) -> Self {
        let listener = fabric(secret).listen("127.0.0.1:0").expect("a free port");
        let (address, (told, end)) = (listener.address(), channel());
        let run = move || -> Result<()> {
            let caller = listener.accept()?;
            let mut judge = |greeting: &[u8]| match greeting {
                b"unwanted" => Err("not you".to_owned()),
                greeting => Ok([b"hello ", greeting].concat()),
            };
            let mut link = caller.admit(&mut judge, soon())?;
            loop {
                let (tag, message) = link.receive(1 << 20, soon())?;
                let message = message.to_vec();
                link.send(tag, &[&message], soon())?;
            }
        };
        let thread = std::thread::spawn(move || {
            let _ = told.send(run().expect_err("it runs until the link fails"));
        });
        Self { address, end, thread }
    }

    fn end(self) -> FabricError {
        let error = self.end.recv_timeout(PATIENCE).expect("it ends");
        self.thread.join().expect("no panic");
        error
    }
}

fn tag(sequence: u64) -> Tag {
    Tag { kind: 3, epoch: 9, sequence }
}

#[test]
fn messages_come_back_whole() {
    let echo = Echo::start(SECRET);
    let Joined { mut link, answer } = fabric(SECRET).connect(&echo.address, b"caller", soon()).expect("admitted");
    assert_eq!(answer, b"hello caller");
    let mut rng = Rng::new(1);
    for (sequence, length) in [0, 1, 35, 4096, 1 << 20, 7].into_iter().enumerate() {
        let message: Vec<u8> = (0..length).map(|_| rng.next_u64() as u8).collect();
        let (a, b) = message.split_at(length / 3);
        link.send(tag(sequence as u64), &[a, b"", b], soon()).expect("sent");
        let (found, reply) = link.receive(1 << 20, soon()).expect("echoed");
        assert_eq!((found, reply), (tag(sequence as u64), &message[..]), "{length} bytes");
    }
    // Several on their way at once come back in order.
    for sequence in 0..50 {
        link.send(tag(sequence), &[&[sequence as u8; 100]], soon()).expect("sent");
    }
    for sequence in 0..50 {
        let (found, reply) = link.receive(100, soon()).expect("echoed");
        assert_eq!((found, reply), (tag(sequence), &[sequence as u8; 100][..]));
    }
    drop(link);
    assert!(matches!(echo.end(), FabricError::Closed));
}

#[test]
fn strangers_get_nothing() {
    let echo = Echo::start(SECRET);
    let error = fabric("another secret of tests").connect(&echo.address, b"x", soon()).err().expect("not admitted");
    assert!(matches!(error, FabricError::Unauthenticated), "{error}");
    let error = echo.end();
    assert!(matches!(error, FabricError::Unauthenticated), "{error}");

    let echo = Echo::start(SECRET);
    let error = fabric(SECRET).connect(&echo.address, b"unwanted", soon()).err().expect("refused");
    assert_eq!(error.to_string(), "the peer refuses us: not you");
    assert!(matches!(echo.end(), FabricError::Refused(_)));

    // Bytes of another protocol: nothing is sent back.
    let echo = Echo::start(SECRET);
    let mut stream = std::net::TcpStream::connect(&echo.address).expect("it listens");
    let request = b"GET / HTTP/1.1\r\nhost: somewhere.example\r\n\r\n";
    std::io::Write::write_all(&mut stream, request).expect("sent");
    let error = echo.end();
    assert!(matches!(error, FabricError::Corrupt(_)), "{error}");
    let mut told = Vec::new();
    let _ = std::io::Read::read_to_end(&mut stream, &mut told); // closed, or reset for what was not read
    assert!(told.is_empty(), "{told:?}");
}

#[test]
fn nobody_there_is_told_in_time() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    // A listener that takes no call: the handshake gets no answer.
    let error = fabric(SECRET).connect(&address, b"", Instant::now() + SHORT).err().expect("nobody answers");
    assert!(matches!(error, FabricError::TimedOut), "{error}");
    drop(listener);
    let error = fabric(SECRET).connect(&address, b"", soon()).err().expect("nobody is there");
    assert!(matches!(error, FabricError::Io { what: "connect", .. }), "{error}");
    let error = fabric(SECRET).connect("no port", b"", soon()).err().expect("no address");
    assert!(matches!(error, FabricError::Address { .. }), "{error}");
}

#[test]
fn a_link_bounds_what_it_takes() {
    let echo = Echo::start(SECRET);
    let mut link = fabric(SECRET).connect(&echo.address, b"", soon()).expect("admitted").link;
    link.send(tag(0), &[&[1; 100]], soon()).expect("sent");
    let error = link.receive(99, soon()).map(|_| ()).expect_err("too long");
    assert!(matches!(error, FabricError::TooLong { bytes: 100, bytes_max: 99 }), "{error}");
}

/// What a caller that sends one message and waits for its echo gets over a connection that is harmed.
fn exchange(fault: Fault) -> Result<(Tag, Vec<u8>)> {
    let echo = Echo::start(SECRET);
    let proxy = FaultyProxy::start(&echo.address, Some(fault)).expect("a free port");
    let waits = matches!(fault.harm, Harm::Stall | Harm::Drip);
    let deadline = || if waits { Instant::now() + SHORT } else { soon() };
    let mut link = fabric(SECRET).connect(&proxy.address(), b"caller", deadline())?.link;
    link.send(tag(1), &[&[5; 3000]], deadline())?;
    let (tag, message) = link.receive(3000, deadline())?;
    Ok((tag, message.to_vec()))
}

/// Wherever a connection is harmed, the caller gets an error in time, never other bytes than were sent.
#[test]
fn harm_is_seen_wherever_it_comes() {
    let mut rng = Rng::new(7);
    let handshake = 4 * HEAD_BYTES as u64; // there is at least this much before the message
    for harm in [Harm::Flip, Harm::Cut, Harm::Stall, Harm::Drip] {
        for from in [From::Caller, From::Callee] {
            for round in 0..6 {
                let at = if round < 3 { rng.below(100) } else { handshake as usize + rng.below(2800) } as u64;
                let fault = Fault { connection: 0, from, at, harm };
                let error = exchange(fault).expect_err("a harmed connection");
                let expected = match harm {
                    // A flipped byte of the echo server's input makes it hang up; of a proof, or of the number that
                    // it is over, makes it wrong.
                    Harm::Flip => {
                        matches!(error, FabricError::Corrupt(_) | FabricError::Closed | FabricError::Unauthenticated)
                    }
                    Harm::Cut => matches!(error, FabricError::Closed | FabricError::Unauthenticated),
                    Harm::Stall | Harm::Drip => matches!(error, FabricError::TimedOut),
                };
                assert!(expected, "{fault:?}: {error}");
            }
        }
    }
}
