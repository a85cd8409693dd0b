//! A road between two processes whose condition changes while it is used: where the kernel cannot delay and drop
//! packets, or there is no link of its own to cut.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::proxy::From;
use crate::rng::Rng;

/// TCP sends again what was lost after about this, and after twice this.
const RESEND: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Open,
    /// Nothing passes, and nobody is told; what was sent comes when it is open again.
    Blocked,
    /// Everything takes so long, and up to so much longer.
    Slow {
        delay: Duration,
        jitter: Duration,
    },
    /// So many in 100 pieces are lost and sent again.
    Lossy {
        percent: usize,
    },
}

/// Runs until it is dropped; then all its connections are closed.
pub struct Road {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    target: String,
    condition: Condition,
    /// Whose next bytes are garbled.
    garbles: Option<From>,
    ends: bool,
    rng: Rng,
    /// Both ends of every connection, to close them.
    streams: Vec<TcpStream>,
}

impl Road {
    /// To who listens at `target`; who does not listen yet may come later.
    pub fn start(target: &str, seed: u64) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let (condition, rng) = (Condition::Open, Rng::new(seed));
        let target = target.to_owned();
        let state = State { target, condition, garbles: None, ends: false, rng, streams: Vec::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let of_thread = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || {
            while let Ok((caller, _)) = listener.accept() {
                if of_thread.state().ends {
                    return;
                }
                let of_connection = Arc::clone(&of_thread);
                std::thread::spawn(move || of_connection.forward(&caller));
            }
        });
        Ok(Self { address, shared, acceptor: Some(acceptor) })
    }

    /// Where to connect instead of the target.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Leads to somebody else from now on; whoever is on the way is turned back.
    pub fn lead_to(&self, target: &str) {
        self.shared.state().target = target.to_owned();
        self.reset();
    }

    pub fn set(&self, condition: Condition) {
        self.shared.state().condition = condition;
        self.shared.changed.notify_all();
    }

    /// One bit of the next bytes of that side is the other one.
    pub fn garble(&self, from: From) {
        self.shared.state().garbles = Some(from);
    }

    /// Every connection ends, for both.
    pub fn reset(&self) {
        for stream in self.shared.state().streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Road {
    fn drop(&mut self) {
        self.shared.state().ends = true;
        self.shared.changed.notify_all();
        let _ = TcpStream::connect(self.address); // wakes the acceptor
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        self.reset();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no pump panics")
    }

    fn forward(self: &Arc<Self>, caller: &TcpStream) {
        let _ = self.join(caller);
        let _ = caller.shutdown(Shutdown::Both);
    }

    /// Until either side ends.
    fn join(self: &Arc<Self>, caller: &TcpStream) -> std::io::Result<()> {
        self.pass();
        let target = self.state().target.clone();
        let callee = TcpStream::connect(target)?;
        for stream in [caller, &callee] {
            stream.set_nodelay(true)?;
            let kept = stream.try_clone()?;
            self.state().streams.push(kept);
        }
        let (back, answers, to) = (Arc::clone(self), callee.try_clone()?, caller.try_clone()?);
        let answering = std::thread::spawn(move || {
            let _ = back.pump(&answers, &to, From::Callee);
            let _ = (answers.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
        });
        let _ = self.pump(caller, &callee, From::Caller);
        let _ = callee.shutdown(Shutdown::Both);
        let _ = answering.join();
        Ok(())
    }

    /// Waits as the condition has it.
    fn pass(&self) {
        let mut state = self.state();
        while state.condition == Condition::Blocked && !state.ends {
            state = self.changed.wait(state).expect("no pump panics");
        }
        let wait = match state.condition {
            Condition::Open | Condition::Blocked => Duration::ZERO,
            Condition::Slow { delay, jitter } => delay + jitter.mul_f64(state.rng.below(1000) as f64 / 1000.0),
            Condition::Lossy { percent } => match (state.rng.chance(percent), state.rng.chance(percent)) {
                (false, _) => Duration::ZERO,
                (true, false) => RESEND,
                (true, true) => RESEND * 3,
            },
        };
        drop(state);
        std::thread::sleep(wait); // not for somebody: this is the road's length
    }

    fn pump(&self, mut from: &TcpStream, mut to: &TcpStream, side: From) -> std::io::Result<()> {
        let mut bytes = vec![0; 1 << 16];
        loop {
            let count = from.read(&mut bytes)?;
            if count == 0 {
                return Ok(());
            }
            self.pass();
            let mut state = self.state();
            if state.garbles == Some(side) {
                state.garbles = None;
                bytes[count / 2] ^= 0x10;
            }
            drop(state);
            to.write_all(&bytes[..count])?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An echo behind a road: what is said comes back as it was, but where it is garbled, and not while it is blocked.
    #[test]
    fn a_road_is_what_its_condition_says() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let road = Road::start(&listener.local_addr().expect("bound").to_string(), 1).expect("a free port");
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
            }
        });
        let mut stream = TcpStream::connect(road.address()).expect("it takes calls");
        let mut say = |what: &[u8; 4]| {
            stream.write_all(what).expect("sent");
            let mut heard = [0; 4];
            stream.read_exact(&mut heard).map(|()| heard)
        };
        let slow = Condition::Slow { delay: Duration::from_millis(1), jitter: Duration::from_millis(1) };
        for condition in [Condition::Open, slow, Condition::Lossy { percent: 20 }] {
            road.set(condition);
            assert_eq!(say(b"ping").expect("heard"), *b"ping", "{condition:?}");
        }
        road.set(Condition::Open);
        for side in [From::Caller, From::Callee] {
            road.garble(side);
            assert_ne!(say(b"ping").expect("heard"), *b"ping", "{side:?}");
        }
        road.set(Condition::Blocked);
        std::thread::scope(|scope| {
            let said = scope.spawn(|| say(b"late"));
            road.set(Condition::Open);
            assert_eq!(said.join().expect("no panic").expect("heard"), *b"late");
        });
        road.reset();
        assert!(say(b"gone").is_err());
    }
}
