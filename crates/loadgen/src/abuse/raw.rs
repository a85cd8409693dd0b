//! Requests below the level at which libraries keep the rules.

use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// A bad request is answered or cut off within this.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// An HTTP/2 connection; closed when dropped.
pub struct Connection {
    pub sender: SendRequest<Bytes>,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub async fn connect(address: &str) -> Result<Connection, String> {
    let opening = async {
        let stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
        h2::client::handshake(stream).await.map_err(|e| e.to_string())
    };
    let opened = tokio::time::timeout(ANSWER_WITHIN, opening).await.map_err(|_| "no handshake in time".to_string());
    let (sender, connection) = opened.flatten()?;
    let task = tokio::spawn(async move {
        let _ = connection.await; // the server may cut it off: that shows in the streams
    });
    Ok(Connection { sender, task })
}

/// The head of a gRPC call.
pub fn request(path: &str, content_type: &str) -> Request<()> {
    Request::builder()
        .method(Method::POST)
        .uri(format!("http://victim{path}"))
        .header("content-type", content_type)
        .header("te", "trailers")
        .body(())
        .expect("a request of constants is well formed")
}

/// How a server met a bad request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Met {
    /// An HTTP status, and of a gRPC call its code.
    Answered { http: u16, grpc: Option<i32> },
    /// The stream or connection was closed.
    CutOff,
    /// Nothing came within the time allowed.
    Silent,
}

/// One gRPC call on a connection of its own, with any bytes as its body.
pub async fn grpc_call(address: &str, path: &str, content_type: &str, body: Vec<u8>) -> Met {
    let call = async {
        let Ok(connection) = connect(address).await else { return Met::CutOff };
        let Ok(mut sender) = connection.sender.clone().ready().await else { return Met::CutOff };
        let Ok((response, mut send)) = sender.send_request(request(path, content_type), false) else {
            return Met::CutOff;
        };
        let _ = send.send_data(body.into(), true); // refused early: the answer says so
        let Ok(response) = response.await else { return Met::CutOff };
        let code = |headers: &http::HeaderMap| headers.get("grpc-status")?.to_str().ok()?.parse().ok();
        let (http, mut grpc) = (response.status().as_u16(), code(response.headers()));
        let mut body = response.into_body();
        while let Some(Ok(chunk)) = body.data().await {
            let _ = body.flow_control().release_capacity(chunk.len());
        }
        if let Ok(Some(trailers)) = body.trailers().await {
            grpc = grpc.or(code(&trailers));
        }
        Met::Answered { http, grpc }
    };
    tokio::time::timeout(ANSWER_WITHIN, call).await.unwrap_or(Met::Silent)
}

/// Bytes on a TCP connection of its own, as they are; what comes back is read as an HTTP/1.1 answer.
pub async fn tcp(address: &str, bytes: &[u8]) -> Met {
    let call = async {
        let Ok(mut stream) = TcpStream::connect(address).await else { return Met::CutOff };
        let (mut reader, mut writer) = stream.split();
        let mut answer = Vec::new();
        // Both at once: a server may answer before it has read all.
        let read = async {
            let mut buffer = [0; 4096];
            while answer.len() < ANSWER_BYTES_MAX && status_of(&answer).is_none() {
                match reader.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(n) => answer.extend_from_slice(&buffer[..n]),
                }
            }
            status_of(&answer).map_or(Met::CutOff, |http| Met::Answered { http, grpc: None })
        };
        let write = async {
            let _ = writer.write_all(bytes).await; // a server that hangs up is within its rights
            std::future::pending::<()>().await
        };
        tokio::select! { met = read => met, () = write => Met::CutOff }
    };
    tokio::time::timeout(ANSWER_WITHIN, call).await.unwrap_or(Met::Silent)
}

/// The status of an HTTP/1 answer that begins so.
fn status_of(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|b| *b == b'\n').next().filter(|line| line.len() < answer.len())?;
    let line = std::str::from_utf8(line).ok()?;
    line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_from_its_line() {
        let check = |answer: &[u8], status: Option<u16>| assert_eq!(status_of(answer), status, "{answer:?}");
        check(b"HTTP/1.1 400 Bad Request\r\n", Some(400));
        check(b"HTTP/1.0 413\r\n", Some(413));
        check(b"HTTP/1.1 40", None);
        check(b"\xff\xfe\r\n", None);
        check(b"", None);
    }
}
