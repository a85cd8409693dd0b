//! Links over loopback, sound and harmed.

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use lingqu_fabric::{Fabric, FabricError, HEAD_BYTES, Result};
use support::{Echo, PATIENCE, SECRET, SHORT, conforms, fabric, harm_is_seen, soon};

#[test]
fn it_conforms() {
    conforms(fabric(SECRET), fabric("another secret of tests"));
}

#[test]
fn another_protocol_gets_nothing() {
    let echo = Echo::start(&fabric(SECRET));
    let mut stream = TcpStream::connect(&echo.address).expect("it listens");
    let request = b"GET / HTTP/1.1\r\nhost: somewhere.example\r\n\r\n";
    stream.write_all(request).expect("sent");
    let error = echo.end();
    assert!(matches!(error, FabricError::Corrupt(_)), "{error}");
    let mut told = Vec::new();
    let _ = stream.read_to_end(&mut told); // closed, or reset for what was not read
    assert!(told.is_empty(), "{told:?}");
}

#[test]
fn nobody_there_is_told_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    // A listener that takes no call: the handshake gets no answer.
    let error = fabric(SECRET).connect(&address, b"", Instant::now() + SHORT).err().expect("nobody answers");
    assert!(matches!(error, FabricError::TimedOut), "{error}");
    drop(listener);
    let error = fabric(SECRET).connect(&address, b"", soon()).err().expect("nobody is there");
    assert!(matches!(error, FabricError::Io { what: "connect", .. }), "{error}");
}

#[test]
fn harm_is_seen_wherever_it_comes() {
    // A flipped byte of the echo server's input makes it hang up; of a proof, or of the number that it is over, makes
    // it wrong.
    let is_right = |outcome: &Result<()>| {
        matches!(outcome, Err(FabricError::Corrupt(_) | FabricError::Closed | FabricError::Unauthenticated))
    };
    harm_is_seen(&fabric(SECRET), 4 * HEAD_BYTES as u64, (PATIENCE, is_right));
}
