//! A peer on loopback, and how a call to it goes over a harmed connection.

#![allow(dead_code)] // each test file uses a part

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lingqu_fabric::conformance::{self, Subject};
use lingqu_fabric::{CertificateFiles, Fabric, FabricError, Result, Secret, Tag, TcpFabric};
use lingqu_testkit::proxy::{Fault, FaultyProxy, From, Harm};
use lingqu_testkit::rng::Rng;

pub const SECRET: &str = "an open secret of tests";
/// Nothing that works takes this long.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// What hangs is found out after this.
pub const SHORT: Duration = Duration::from_millis(300);

pub fn soon() -> Instant {
    Instant::now() + PATIENCE
}

pub fn fabric(secret: &str) -> TcpFabric {
    TcpFabric::new(Secret::new(secret.as_bytes()).expect("long enough"))
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
}

/// Certificates made by `tls/make.sh`.
pub fn files(ca: &str, certificate: &str) -> CertificateFiles {
    let [ca, key] = [file(&format!("{ca}.pem")), file(&format!("{certificate}.key"))];
    CertificateFiles { ca, certificate: file(&format!("{certificate}.pem")), key, name: None }
}

/// The conformance suite over loopback.
pub fn conforms(ours: TcpFabric, stranger: TcpFabric) {
    let listener = ours.listen("127.0.0.1:0").expect("a free port");
    let address = listener.address();
    std::thread::spawn(move || conformance::serve(&*listener));
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let nobody = silent.local_addr().expect("bound").to_string();
    let failed = conformance::run(&Subject { fabric: &ours, stranger: &stranger, address: &address, nobody: &nobody });
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Takes one call, then sends every message back until the link ends; tells how it ended.
pub struct Echo {
    pub address: String,
    end: Receiver<FabricError>,
    thread: JoinHandle<()>,
}

impl Echo {
    pub fn start(fabric: &TcpFabric) -> Self {
        let listener = fabric.listen("127.0.0.1:0").expect("a free port");
        let (address, (told, end)) = (listener.address(), channel());
        let run = move || -> Result<()> {
            let mut link = listener.accept()?.admit(&mut |_| Ok(Vec::new()), soon())?;
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

    pub fn end(self) -> FabricError {
        let error = self.end.recv_timeout(PATIENCE).expect("it ends");
        self.thread.join().expect("no panic");
        error
    }
}

/// How it goes for a caller that sends one message and waits for its echo over a connection that is harmed. It never
/// gets other bytes than were sent.
fn exchange(fabric: &TcpFabric, fault: Fault, patience: Duration) -> Result<()> {
    let echo = Echo::start(fabric);
    let proxy = FaultyProxy::start(&echo.address, Some(fault)).expect("a free port");
    let deadline = || Instant::now() + patience;
    let mut link = fabric.connect(&proxy.address(), b"caller", deadline())?.link;
    let (sent, message) = (Tag { kind: 3, epoch: 9, sequence: 1 }, [5; 3000]);
    link.send(sent, &[&message], deadline())?;
    let received = link.receive(message.len(), deadline())?;
    assert!(received == (sent, &message[..]), "{fault:?}");
    Ok(())
}

/// Wherever a connection is harmed, the caller gets an error in time. About `handshake` bytes pass before the message;
/// `flipped` says for how long to wait after a bit was flipped, and what may come of it.
pub fn harm_is_seen(fabric: &TcpFabric, handshake: u64, flipped: (Duration, fn(&Result<()>) -> bool)) {
    let mut rng = Rng::new(7);
    for harm in [Harm::Flip, Harm::Cut, Harm::Stall, Harm::Drip] {
        for from in [From::Caller, From::Callee] {
            for round in 0..6 {
                let at = if round < 3 { rng.below(100) as u64 } else { handshake + rng.below(2800) as u64 };
                let fault = Fault { connection: 0, from, at, harm };
                let patience = match harm {
                    Harm::Flip => flipped.0,
                    Harm::Cut => PATIENCE,
                    Harm::Stall | Harm::Drip => SHORT,
                };
                let outcome = exchange(fabric, fault, patience);
                let expected = match harm {
                    Harm::Flip => (flipped.1)(&outcome),
                    Harm::Cut => matches!(outcome, Err(FabricError::Closed | FabricError::Unauthenticated)),
                    Harm::Stall | Harm::Drip => matches!(outcome, Err(FabricError::TimedOut)),
                };
                assert!(expected, "{fault:?}: {outcome:?}");
            }
        }
    }
}
