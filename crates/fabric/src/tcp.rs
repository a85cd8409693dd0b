//! Links over TCP, on blocking sockets: the step loop is one thread, and a wake-up costs less than a runtime's.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::frame::{HEAD_BYTES, Head};
use crate::{Caller, Fabric, FabricError, Joined, Judge, Link, Listener, Result, Secret, Tag, handshake};

/// The shortest wait that a socket can be told; also where the deadline has passed, so that what has arrived is read.
const WAIT_MIN: Duration = Duration::from_millis(1);

/// The fabric that needs nothing but a network.
#[derive(Clone, Debug)]
pub struct TcpFabric {
    secret: Secret,
}

impl TcpFabric {
    pub fn new(secret: Secret) -> Self {
        Self { secret }
    }
}

/// All addresses that a name like `worker-0:7001` stands for.
fn resolve(address: &str) -> Result<Vec<SocketAddr>> {
    let bad = |problem: String| FabricError::Address { address: address.into(), problem };
    let found: Vec<SocketAddr> = address.to_socket_addrs().map_err(|e| bad(e.to_string()))?.collect();
    if found.is_empty() { Err(bad("the name stands for nothing".into())) } else { Ok(found) }
}

impl Fabric for TcpFabric {
    fn connect(&self, address: &str, greeting: &[u8], deadline: Instant) -> Result<Joined> {
        let mut last = FabricError::TimedOut;
        for address in resolve(address)? {
            let wait = deadline.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                break;
            }
            match TcpStream::connect_timeout(&address, wait) {
                Ok(stream) => {
                    let mut link = TcpLink::new(stream)?;
                    let answer = handshake::call(&mut link, &self.secret, greeting, deadline)?;
                    return Ok(Joined { link: Box::new(link), answer });
                }
                Err(error) => last = failed("connect", error),
            }
        }
        Err(last)
    }

    fn listen(&self, address: &str) -> Result<Box<dyn Listener>> {
        let listener = TcpListener::bind(resolve(address)?.as_slice()).map_err(|e| failed("listen", e))?;
        let address = listener.local_addr().map_err(|e| failed("listen", e))?;
        Ok(Box::new(TcpCallee { listener, address, secret: self.secret.clone() }))
    }
}

struct TcpCallee {
    listener: TcpListener,
    address: SocketAddr,
    secret: Secret,
}

impl Listener for TcpCallee {
    fn address(&self) -> String {
        self.address.to_string()
    }

    fn accept(&self) -> Result<Box<dyn Caller>> {
        let (stream, from) = self.listener.accept().map_err(|e| failed("take a call", e))?;
        Ok(Box::new(TcpCaller { link: TcpLink::new(stream)?, from, secret: self.secret.clone() }))
    }
}

struct TcpCaller {
    link: TcpLink,
    from: SocketAddr,
    secret: Secret,
}

impl Caller for TcpCaller {
    fn address(&self) -> String {
        self.from.to_string()
    }

    fn admit(mut self: Box<Self>, judge: Judge<'_>, deadline: Instant) -> Result<Box<dyn Link>> {
        handshake::answer(&mut self.link, &self.secret, judge, deadline)?;
        Ok(Box::new(self.link))
    }
}

struct TcpLink {
    stream: TcpStream,
    /// The last message; grows to the longest that was allowed and came.
    message: Vec<u8>,
}

impl TcpLink {
    fn new(stream: TcpStream) -> Result<Self> {
        // A step waits for each message: none may wait for company.
        stream.set_nodelay(true).map_err(|e| failed("set up the connection", e))?;
        Ok(Self { stream, message: Vec::new() })
    }
}

/// What is left until the deadline, as a socket takes it.
fn wait(deadline: Instant) -> Option<Duration> {
    Some(deadline.saturating_duration_since(Instant::now()).max(WAIT_MIN))
}

/// A system's error in our terms.
fn failed(what: &'static str, source: std::io::Error) -> FabricError {
    match source.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => FabricError::TimedOut,
        ErrorKind::UnexpectedEof
        | ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe => FabricError::Closed,
        _ => FabricError::Io { what, source },
    }
}

/// Reads until `bytes` are full. A peer that sends byte after byte does not move the deadline.
fn read_full(stream: &mut TcpStream, bytes: &mut [u8], deadline: Instant) -> Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        if done > 0 && Instant::now() >= deadline {
            return Err(FabricError::TimedOut);
        }
        stream.set_read_timeout(wait(deadline)).map_err(|e| failed("receive", e))?;
        match stream.read(&mut bytes[done..]) {
            Ok(0) => return Err(FabricError::Closed),
            Ok(count) => done += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(failed("receive", error)),
        }
    }
    Ok(())
}

/// Writes all parts, with as few calls to the system as it lets us.
fn write_full(stream: &mut TcpStream, mut slices: &mut [IoSlice<'_>], deadline: Instant) -> Result<()> {
    IoSlice::advance_slices(&mut slices, 0); // empty parts in front would read as a closed connection
    while !slices.is_empty() {
        stream.set_write_timeout(wait(deadline)).map_err(|e| failed("send", e))?;
        match stream.write_vectored(slices) {
            Ok(0) => return Err(FabricError::Closed),
            Ok(count) => IoSlice::advance_slices(&mut slices, count),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(failed("send", error)),
        }
        if !slices.is_empty() && Instant::now() >= deadline {
            return Err(FabricError::TimedOut);
        }
    }
    Ok(())
}

impl Link for TcpLink {
    fn send(&mut self, tag: Tag, parts: &[&[u8]], deadline: Instant) -> Result<()> {
        let head = Head::of(tag, parts)?.encode();
        let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(1 + parts.len());
        slices.push(IoSlice::new(&head));
        slices.extend(parts.iter().map(|part| IoSlice::new(part)));
        write_full(&mut self.stream, &mut slices, deadline)
    }

    fn receive(&mut self, bytes_max: usize, deadline: Instant) -> Result<(Tag, &[u8])> {
        let mut head = [0; HEAD_BYTES];
        read_full(&mut self.stream, &mut head, deadline)?;
        let head = Head::decode(&head, bytes_max)?;
        if self.message.len() < head.length {
            self.message.resize(head.length, 0);
        }
        let message = &mut self.message[..head.length];
        read_full(&mut self.stream, message, deadline)?;
        head.check(message)?;
        Ok((head.tag, message))
    }
}
