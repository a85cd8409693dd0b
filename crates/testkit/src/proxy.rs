//! A bad network: forwards connections to one address and does harm at a chosen byte.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Who sends the bytes that are harmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Caller,
    Callee,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// One bit of the byte is the other one.
    Flip,
    /// The connection ends there, for both.
    Cut,
    /// Nothing comes any more, and nobody is told.
    Stall,
    /// From there on one byte every few milliseconds.
    Drip,
}

/// What goes wrong: once, on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Number of the connection, from 0.
    pub connection: usize,
    pub from: From,
    /// Bytes of that side that pass unharmed.
    pub at: u64,
    pub harm: Harm,
}

/// Runs until it is dropped; then all its connections are closed.
pub struct FaultyProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    target: String,
    fault: Option<Fault>,
    ends: AtomicBool,
    connections: AtomicUsize,
    /// Both ends of every connection, to close them.
    streams: Mutex<Vec<TcpStream>>,
}

impl FaultyProxy {
    pub fn start(target: &str, fault: Option<Fault>) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            target: target.to_owned(),
            fault,
            ends: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            streams: Mutex::new(Vec::new()),
        });
        let of_thread = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || {
            while let Ok((caller, _)) = listener.accept() {
                if of_thread.ends.load(Ordering::SeqCst) {
                    return;
                }
                // A target that is gone looks like a connection that ends at once.
                let _ = of_thread.forward(caller);
            }
        });
        Ok(Self { address, shared, acceptor: Some(acceptor) })
    }

    /// Where to connect instead of the target.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Drop for FaultyProxy {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address); // wakes the acceptor
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        for stream in self.shared.streams.lock().expect("no pump panics").iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn forward(&self, caller: TcpStream) -> std::io::Result<()> {
        let number = self.connections.fetch_add(1, Ordering::SeqCst);
        let callee = TcpStream::connect(&self.target)?;
        for stream in [&caller, &callee] {
            stream.set_nodelay(true)?;
        }
        let both = [caller.try_clone()?, callee.try_clone()?];
        self.streams.lock().expect("no pump panics").extend(both);
        let fault = |from| self.fault.filter(|f| f.connection == number && f.from == from);
        for (from, to, fault) in
            [(caller.try_clone()?, callee.try_clone()?, fault(From::Caller)), (callee, caller, fault(From::Callee))]
        {
            std::thread::spawn(move || {
                let _ = pump(&from, &to, fault);
                let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
            });
        }
        Ok(())
    }
}

/// Carries bytes until either side ends.
fn pump(mut from: &TcpStream, mut to: &TcpStream, fault: Option<Fault>) -> std::io::Result<()> {
    let mut bytes = vec![0; 1 << 16];
    let mut passed = 0;
    loop {
        let count = from.read(&mut bytes)?;
        if count == 0 {
            return Ok(());
        }
        let chunk = &mut bytes[..count];
        let hit =
            fault.filter(|f| f.at < passed + count as u64).map(|f| (f.harm, f.at.saturating_sub(passed) as usize));
        match hit {
            None => to.write_all(chunk)?,
            Some((Harm::Flip, at)) => {
                if passed <= fault.map_or(0, |f| f.at) {
                    chunk[at] ^= 0x10;
                }
                to.write_all(chunk)?;
            }
            Some((Harm::Cut, at)) => return to.write_all(&chunk[..at]),
            Some((Harm::Stall, at)) => {
                to.write_all(&chunk[..at])?;
                while from.read(&mut bytes)? > 0 {}
                return Ok(());
            }
            Some((Harm::Drip, at)) => {
                to.write_all(&chunk[..at])?;
                for byte in &chunk[at..] {
                    std::thread::sleep(Duration::from_millis(5));
                    to.write_all(&[*byte])?;
                }
            }
        }
        passed += count as u64;
    }
}
