//! The fabric over a library of our own that has NCCL's names (`fake_nccl.c`), sound, failing and hanging; and what it
//! says where there is no library, or one without the names. What needs a C compiler is skipped without one.

use std::ffi::{CString, c_char, c_int};
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use lingqu_fabric::conformance::{self, Subject};
use lingqu_fabric::{Fabric, FabricError, Link, Listener, Result, Secret, Tag, TcpFabric};
use lingqu_fabric_nccl::{Address, Library, NCCL, NcclFabric, RCCL, SHORT_BYTES_MAX, Staging};

const SECRET: &str = "an open secret of tests";
/// Nothing that works takes this long.
const PATIENCE: Duration = Duration::from_secs(60);
/// What hangs is found out after this.
const SHORT: Duration = Duration::from_millis(300);
/// Goes by the library.
const LONG_BYTES: usize = SHORT_BYTES_MAX + 1;

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// The fake library, and what it is told.
struct Fake {
    library: Arc<Library>,
    own: ManuallyDrop<libloading::Library>,
}

/// Compiles it, once; none without a compiler.
fn compiled() -> Option<&'static PathBuf> {
    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let compile = || {
        let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("libfake_nccl_{}.so", std::process::id()));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake_nccl.c");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-pthread", source, "-o"]).arg(&file);
        match cc.output() {
            Ok(output) if output.status.success() => Some(file),
            Ok(output) => panic!("{}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => {
                println!("skipped: no C compiler here ({error})");
                None
            }
        }
    };
    FILE.get_or_init(compile).as_ref()
}

impl Fake {
    /// One test at a time: what it is told is for all.
    fn load() -> Option<(Self, MutexGuard<'static, ()>)> {
        static TURN: Mutex<()> = Mutex::new(());
        let file = compiled()?;
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: our own library, which is never closed.
        let own = unsafe { libloading::Library::new(file) }.expect("it was just compiled");
        let library = Library::open(&[file.to_str().expect("a UTF-8 path")]).expect("it has the names");
        Some((Self { library, own: ManuallyDrop::new(own) }, turn))
    }

    fn tell(&self, what: &str, name: &str) {
        let name = CString::new(name).expect("no 0 in it").into_raw(); // the library keeps it
        // SAFETY: the function has this type in fake_nccl.c.
        unsafe { (*self.own.get::<unsafe extern "C" fn(*const c_char)>(what).expect("it is there"))(name) }
    }

    fn count(&self, what: &str) -> c_int {
        // SAFETY: the function has this type in fake_nccl.c.
        unsafe { (*self.own.get::<unsafe extern "C" fn() -> c_int>(what).expect("it is there"))() }
    }

    fn fabric(&self, secret: &str) -> NcclFabric {
        let first = TcpFabric::new(Secret::new(secret.as_bytes()).expect("long enough"));
        // SAFETY: the function has this type in fake_nccl.c, and the library is never closed.
        let is_done = unsafe { *self.own.get::<IsDone>("fake_is_done").expect("it is there") };
        let staging = move || {
            let staging = HostStaging { memory: Vec::new(), stream: Box::new(0), is_done };
            Ok(Box::new(staging) as Box<dyn Staging>)
        };
        NcclFabric::new(Arc::clone(&self.library), Arc::new(first), Arc::new(staging))
    }
}

type IsDone = unsafe extern "C" fn(*const c_int) -> c_int;

/// Memory of the host, and a stream of the fake library.
struct HostStaging {
    memory: Vec<u8>,
    stream: Box<c_int>,
    is_done: IsDone,
}

impl Staging for HostStaging {
    fn reserve(&mut self, bytes: usize) -> Result<Address, String> {
        self.memory = vec![0xaa; bytes];
        Ok(Address(self.memory.as_mut_ptr().cast()))
    }

    fn upload(&mut self, parts: &[&[u8]]) -> Result<(), String> {
        let mut at = 0;
        for part in parts {
            self.memory[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        Ok(())
    }

    fn download(&mut self, bytes: &mut [u8]) -> Result<(), String> {
        bytes.copy_from_slice(&self.memory[..bytes.len()]);
        Ok(())
    }

    fn stream(&self) -> Address {
        Address((&raw const *self.stream).cast_mut().cast())
    }

    fn is_done(&mut self) -> Result<bool, String> {
        // SAFETY: the stream is the library's counter, which is alive.
        Ok(unsafe { (self.is_done)(&raw const *self.stream) } != 0)
    }
}

fn listen(fabric: &NcclFabric) -> (String, Box<dyn Listener>) {
    let listener = fabric.listen("127.0.0.1:0").expect("a free port");
    (listener.address(), listener)
}

#[test]
fn it_conforms() {
    let Some((fake, _turn)) = Fake::load() else { return };
    let (ours, stranger) = (fake.fabric(SECRET), fake.fabric("another secret of tests"));
    let (address, listener) = listen(&ours);
    std::thread::spawn(move || conformance::serve(&*listener));
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let nobody = silent.local_addr().expect("bound").to_string();
    let failed = conformance::run(&Subject { fabric: &ours, stranger: &stranger, address: &address, nobody: &nobody });
    assert!(failed.is_empty(), "{failed:#?}");
    assert_eq!(fake.library.version, 22304);
}

/// One long message there and back between two threads, each with `patience`; how it went for the caller.
fn exchange(fake: &Fake, patience: Duration) -> Result<()> {
    let fabric = fake.fabric(SECRET);
    let (address, listener) = listen(&fabric);
    let deadline = move || Instant::now() + patience;
    let callee = std::thread::spawn(move || -> Result<()> {
        let mut link = listener.accept()?.admit(&mut |_| Ok(Vec::new()), deadline())?;
        let (tag, message) = link.receive(LONG_BYTES, deadline())?;
        let message = message.to_vec();
        link.send(tag, &[&message], deadline())
    });
    let call = || -> Result<()> {
        let mut link = fabric.connect(&address, b"", deadline())?.link;
        let (tag, message) = (Tag { kind: 3, epoch: 2, sequence: 1 }, vec![9; LONG_BYTES]);
        link.send(tag, &[&message], deadline())?;
        let (found, reply) = link.receive(LONG_BYTES, deadline())?;
        assert!((found, reply) == (tag, &message[..]));
        Ok(())
    };
    let outcome = call();
    let _ = callee.join().expect("no panic");
    outcome
}

#[test]
fn every_call_may_fail_and_nothing_is_left() {
    let Some((fake, _turn)) = Fake::load() else { return };
    exchange(&fake, PATIENCE).expect("sound");
    let check = |what: &str, name: &str, patience: Duration, says: &[&str]| {
        fake.tell(what, name);
        let outcome = exchange(&fake, patience);
        fake.tell(what, "");
        let error = outcome.expect_err(name).to_string();
        assert!(says.iter().any(|says| error.contains(says)), "{what} {name}: {error}");
        assert_eq!((fake.count("fake_alive"), fake.count("fake_nested")), (0, 0), "{what} {name}");
        exchange(&fake, PATIENCE).expect("sound again");
    };
    for name in ["ncclGetUniqueId", "ncclCommInitRankConfig", "ncclGroupStart", "ncclGroupEnd"] {
        check("fake_fail", name, PATIENCE, &[&format!("{name}: error 2 (told to fail)")]);
    }
    // The callee waits for what is never sent.
    check("fake_fail", "ncclSend", 10 * SHORT, &["ncclSend: error 2 (told to fail)"]);
    check("fake_fail", "ncclCommGetAsyncError", PATIENCE, &["ncclCommGetAsyncError: error 2"]);
    check("fake_fail", "later", PATIENCE, &["the communicator: error 2"]);
    // It shows at the callee; the caller waits for what is not received, or the callee is gone.
    check("fake_fail", "ncclRecv", SHORT, &["the deadline has passed", "closed"]);
    check("fake_fail", "garble", PATIENCE, &["another checksum", "closed"]);
    for name in ["ncclCommInitRankConfig", "ncclSend", "ncclRecv"] {
        check("fake_hang", name, SHORT, &["the deadline has passed"]);
    }
}

/// After a deadline has passed in the middle of a message the link is of no use, and says so at once.
#[test]
fn an_aborted_link_stays_so() {
    let Some((fake, _turn)) = Fake::load() else { return };
    let fabric = fake.fabric(SECRET);
    let (address, listener) = listen(&fabric);
    let callee = std::thread::spawn(move || {
        listener.accept().and_then(|caller| caller.admit(&mut |_| Ok(Vec::new()), soon())).expect("admitted")
    });
    let mut link = fabric.connect(&address, b"", soon()).expect("admitted").link;
    let other: Box<dyn Link> = callee.join().expect("no panic");
    let (tag, message) = (Tag { kind: 3, epoch: 2, sequence: 1 }, vec![9; LONG_BYTES]);
    let mut send = |deadline| link.send(tag, &[&message], deadline);
    assert!(matches!(send(Instant::now() + SHORT), Err(FabricError::TimedOut)));
    assert!(matches!(send(soon()), Err(FabricError::Closed)));
    drop(other);
}

#[test]
fn libraries_that_cannot_be_used() {
    let check = |names: &[&str], says: &[&str]| {
        let error = Library::open(names).err().expect(says[0]).to_string();
        assert!(says.iter().all(|says| error.contains(says)), "{error}");
    };
    check(&["libnowhere.so.9", "libnowhere.so"], &["none of libnowhere.so.9, libnowhere.so can be opened", "("]);
    check(&["libc.so.6"], &["libc.so.6 has no function ncclGetVersion"]);
    let Some((fake, _turn)) = Fake::load() else { return };
    let file = compiled().expect("it was just loaded").to_str().expect("a UTF-8 path");
    fake.tell("fake_fail", "old");
    check(&[file], &["is version 21300; it takes 21400"]);
    fake.tell("fake_fail", "ncclGetVersion");
    check(&[file], &["ncclGetVersion: error 2 (told to fail)"]);
    fake.tell("fake_fail", "");
}

/// Where a vendor's library is installed it has all the names. Links between devices need two of them.
#[test]
fn the_vendors_libraries() {
    for (vendor, names) in [("NCCL", NCCL), ("RCCL", RCCL)] {
        match Library::open(names) {
            Ok(library) => println!("{} is version {}", library.name, library.version),
            Err(error) => println!("skipped: no {vendor} here: {error}"),
        }
    }
}
