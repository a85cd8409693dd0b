//! Links over TCP, on blocking sockets: the step loop is one thread, and a wake-up costs less than a runtime's.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::pipe::{Pipe, admit, join};
use crate::tls::{Certificates, TlsPipe};
use crate::{Caller, Fabric, FabricError, Joined, Judge, Link, Listener, Result, Secret};

/// The shortest wait that a socket can be told; also where the deadline has passed, so that what has arrived is read.
const WAIT_MIN: Duration = Duration::from_millis(1);

/// The fabric that needs nothing but a network. With certificates all that it carries is encrypted.
#[derive(Clone, Debug)]
pub struct TcpFabric {
    secret: Secret,
    certificates: Option<Certificates>,
}

impl TcpFabric {
    pub fn new(secret: Secret) -> Self {
        Self { secret, certificates: None }
    }

    /// Both sides show a certificate of the cluster's authority before anything else is said, the proofs of the secret
    /// among it.
    pub fn with_certificates(self, certificates: Certificates) -> Self {
        Self { certificates: Some(certificates), ..self }
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
        let stream = dial(address, deadline)?;
        match &self.certificates {
            None => join(TcpPipe { stream }, &self.secret, greeting, deadline),
            Some(certificates) => {
                let pipe = TlsPipe::call(stream, certificates, address, deadline)?;
                join(pipe, &self.secret, greeting, deadline)
            }
        }
    }

    fn listen(&self, address: &str) -> Result<Box<dyn Listener>> {
        let listener = TcpListener::bind(resolve(address)?.as_slice()).map_err(|e| failed("listen", e))?;
        let address = listener.local_addr().map_err(|e| failed("listen", e))?;
        Ok(Box::new(TcpCallee { listener, address, fabric: self.clone() }))
    }
}

/// A connection to the first that answers of all that `address` stands for.
fn dial(address: &str, deadline: Instant) -> Result<TcpStream> {
    let mut last = FabricError::TimedOut;
    for address in resolve(address)? {
        let wait = deadline.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(&address, wait) {
            Ok(stream) => return set_up(stream),
            Err(error) => last = failed("connect", error),
        }
    }
    Err(last)
}

fn set_up(stream: TcpStream) -> Result<TcpStream> {
    // A step waits for each message: none may wait for company.
    stream.set_nodelay(true).map_err(|e| failed("set up the connection", e))?;
    Ok(stream)
}

struct TcpCallee {
    listener: TcpListener,
    address: SocketAddr,
    fabric: TcpFabric,
}

impl Listener for TcpCallee {
    fn address(&self) -> String {
        self.address.to_string()
    }

    fn accept(&self) -> Result<Box<dyn Caller>> {
        let (stream, from) = self.listener.accept().map_err(|e| failed("take a call", e))?;
        Ok(Box::new(TcpCaller { stream: set_up(stream)?, from, fabric: self.fabric.clone() }))
    }
}

struct TcpCaller {
    stream: TcpStream,
    from: SocketAddr,
    fabric: TcpFabric,
}

impl Caller for TcpCaller {
    fn address(&self) -> String {
        self.from.to_string()
    }

    fn admit(self: Box<Self>, judge: Judge<'_>, deadline: Instant) -> Result<Box<dyn Link>> {
        let TcpFabric { secret, certificates } = &self.fabric;
        match certificates {
            None => admit(TcpPipe { stream: self.stream }, secret, judge, deadline),
            Some(certificates) => admit(TlsPipe::answer(self.stream, certificates, deadline)?, secret, judge, deadline),
        }
    }
}

struct TcpPipe {
    stream: TcpStream,
}

/// What is left until the deadline, as a socket takes it.
pub(crate) fn wait(deadline: Instant) -> Option<Duration> {
    Some(deadline.saturating_duration_since(Instant::now()).max(WAIT_MIN))
}

/// A system's error in our terms.
pub(crate) fn failed(what: &'static str, source: std::io::Error) -> FabricError {
    match source.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => FabricError::TimedOut,
        ErrorKind::UnexpectedEof
        | ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe => FabricError::Closed,
        _ => FabricError::Io { what, source },
    }
}

impl Pipe for TcpPipe {
    /// With as few calls to the system as it lets us.
    fn write(&mut self, mut parts: &mut [IoSlice<'_>], deadline: Instant) -> Result<()> {
        IoSlice::advance_slices(&mut parts, 0); // empty parts in front would read as a closed connection
        while !parts.is_empty() {
            self.stream.set_write_timeout(wait(deadline)).map_err(|e| failed("send", e))?;
            match self.stream.write_vectored(parts) {
                Ok(0) => return Err(FabricError::Closed),
                Ok(count) => IoSlice::advance_slices(&mut parts, count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(failed("send", error)),
            }
            if !parts.is_empty() && Instant::now() >= deadline {
                return Err(FabricError::TimedOut);
            }
        }
        Ok(())
    }

    fn read(&mut self, bytes: &mut [u8], deadline: Instant) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            if done > 0 && Instant::now() >= deadline {
                return Err(FabricError::TimedOut);
            }
            self.stream.set_read_timeout(wait(deadline)).map_err(|e| failed("receive", e))?;
            match self.stream.read(&mut bytes[done..]) {
                Ok(0) => return Err(FabricError::Closed),
                Ok(count) => done += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(failed("receive", error)),
            }
        }
        Ok(())
    }
}
