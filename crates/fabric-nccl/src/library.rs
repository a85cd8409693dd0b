//! The table of names. NCCL and RCCL have the same ones, with the same types.

use std::error::Error;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::io;
use std::mem::{ManuallyDrop, size_of};
use std::sync::Arc;

use lingqu_fabric::{FabricError, Result};

/// Files of NVIDIA's library.
pub const NCCL: &[&str] = &["libnccl.so.2", "libnccl.so"];
/// Files of AMD's, which Hygon's DTK has too.
pub const RCCL: &[&str] = &["librccl.so.1", "librccl.so"];

pub(crate) const UNIQUE_ID_BYTES: usize = 128;
/// The first that has communicators which do not block: 2.14.0.
const VERSION_MIN: c_int = 21400;

/// `ncclUniqueId`, passed by value.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct UniqueId(pub [u8; UNIQUE_ID_BYTES]);

/// `ncclConfig_t` as of 2.14. Newer libraries see by size and version which fields there are and give the others their
/// defaults.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
}

const CONFIG: Config =
    Config { size: size_of::<Config>(), magic: 0xcafe_beef, version: VERSION_MIN as c_uint, blocking: 0 };

/// `ncclSuccess`, `ncclInProgress`, and `ncclInt8`.
const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;
const BYTES: c_int = 0;

/// A communicator of the library.
pub(crate) type Handle = *mut c_void;

macro_rules! table {
    ($($call:ident = $name:literal ($($argument:ty),*) -> $result:ty;)*) => {
        struct Calls {
            $($call: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl Calls {
            fn load(library: &libloading::Library, file: &str) -> Result<Self> {
                Ok(Self {
                    // SAFETY: the types are those of nccl.h, and the library is never closed.
                    $($call: *unsafe { library.get($name.as_bytes()) }
                        .map_err(|_| cannot_open(format!("{file} has no function {}", $name)))?,)*
                })
            }
        }
    };
}

table! {
    version = "ncclGetVersion"(*mut c_int) -> c_int;
    unique_id = "ncclGetUniqueId"(*mut UniqueId) -> c_int;
    init = "ncclCommInitRankConfig"(*mut Handle, c_int, UniqueId, c_int, *const Config) -> c_int;
    group_start = "ncclGroupStart"() -> c_int;
    group_end = "ncclGroupEnd"() -> c_int;
    send = "ncclSend"(*const c_void, usize, c_int, c_int, Handle, *mut c_void) -> c_int;
    receive = "ncclRecv"(*mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> c_int;
    state = "ncclCommGetAsyncError"(Handle, *mut c_int) -> c_int;
    abort = "ncclCommAbort"(Handle) -> c_int;
    words = "ncclGetErrorString"(c_int) -> *const c_char;
}

/// An opened library; never closed, for its threads live on.
pub struct Library {
    calls: Calls,
    /// As `ncclGetVersion` counts: 22304 is 2.23.4.
    pub version: i32,
    /// Its file.
    pub name: String,
    _library: ManuallyDrop<libloading::Library>,
}

fn cannot_open(words: String) -> FabricError {
    FabricError::Io { what: "open NCCL", source: io::Error::new(io::ErrorKind::NotFound, words) }
}

pub(crate) fn failed(words: String) -> FabricError {
    FabricError::Io { what: "speak NCCL", source: io::Error::other(words) }
}

/// Bytes of a device that go to the peer or come from it.
#[derive(Clone, Copy)]
pub(crate) struct Transfer {
    pub at: *mut c_void,
    pub bytes: usize,
    pub peer: c_int,
    pub stream: *mut c_void,
}

impl Library {
    /// The first of several files that opens.
    pub fn open(names: &[&str]) -> Result<Arc<Self>> {
        let mut reason = None;
        for name in names {
            // SAFETY: vendors' libraries may be opened by anyone; they are never closed, as their threads live on.
            match unsafe { libloading::Library::new(*name) } {
                Ok(library) => return Self::load(ManuallyDrop::new(library), name),
                // The system's own words are in the source.
                Err(error) => {
                    reason.get_or_insert(error.source().map_or_else(|| error.to_string(), ToString::to_string));
                }
            }
        }
        let reason = reason.unwrap_or_default();
        Err(cannot_open(format!("none of {} can be opened ({reason})", names.join(", "))))
    }

    fn load(library: ManuallyDrop<libloading::Library>, name: &str) -> Result<Arc<Self>> {
        let calls = Calls::load(&library, name)?;
        let mut loaded = Self { calls, version: 0, name: name.to_owned(), _library: library };
        let mut version = 0;
        // SAFETY: the number outlives the call.
        let code = unsafe { (loaded.calls.version)(&mut version) };
        loaded.check("ncclGetVersion", code)?;
        if version < VERSION_MIN {
            let words = format!("{name} is version {version}; it takes {VERSION_MIN} to make calls that do not block");
            return Err(cannot_open(words));
        }
        loaded.version = version;
        Ok(Arc::new(loaded))
    }

    /// Whether the call is done; not so if it goes on by itself.
    fn check(&self, name: &str, code: c_int) -> Result<bool> {
        if code == SUCCESS || code == IN_PROGRESS {
            return Ok(code == SUCCESS);
        }
        // SAFETY: any code may be asked for; the answer is a static text.
        let words = unsafe { (self.calls.words)(code) };
        let words = match words.is_null() {
            true => "no words for it".into(),
            // SAFETY: not null, so a text that ends with a 0.
            false => unsafe { CStr::from_ptr(words) }.to_string_lossy(),
        };
        Err(failed(format!("{name}: error {code} ({words})")))
    }

    pub(crate) fn unique_id(&self) -> Result<UniqueId> {
        let mut id = UniqueId([0; UNIQUE_ID_BYTES]);
        // SAFETY: the id outlives the call.
        let code = unsafe { (self.calls.unique_id)(&mut id) };
        self.check("ncclGetUniqueId", code)?;
        Ok(id)
    }

    /// Starts to make a communicator of two ranks. The handle is null if nothing is to be given back.
    pub(crate) fn init(&self, id: UniqueId, rank: c_int) -> (Handle, Result<bool>) {
        let mut handle = std::ptr::null_mut();
        // SAFETY: handle and configuration outlive the call.
        let code = unsafe { (self.calls.init)(&mut handle, 2, id, rank, &CONFIG) };
        (handle, self.check("ncclCommInitRankConfig", code))
    }

    /// Whether all that was asked of the communicator is done.
    pub(crate) fn is_settled(&self, handle: Handle) -> Result<bool> {
        let mut state = IN_PROGRESS;
        // SAFETY: the communicator is alive, see `Communicator`.
        let code = unsafe { (self.calls.state)(handle, &mut state) };
        self.check("ncclCommGetAsyncError", code)?;
        self.check("the communicator", state)
    }

    /// Puts a send on the stream.
    pub(crate) fn send(&self, handle: Handle, transfer: Transfer) -> Result<()> {
        let Transfer { at, bytes, peer, stream } = transfer;
        self.grouped("ncclSend", || {
            // SAFETY: the communicator is alive, and the memory until the stream is done or it is aborted.
            unsafe { (self.calls.send)(at, bytes, BYTES, peer, handle, stream) }
        })
    }

    /// Puts a receive on the stream.
    pub(crate) fn receive(&self, handle: Handle, transfer: Transfer) -> Result<()> {
        let Transfer { at, bytes, peer, stream } = transfer;
        self.grouped("ncclRecv", || {
            // SAFETY: the communicator is alive, and the memory until the stream is done or it is aborted.
            unsafe { (self.calls.receive)(at, bytes, BYTES, peer, handle, stream) }
        })
    }

    /// A group is ended also where the call in it failed: it is the thread's, and the next would nest in it.
    fn grouped(&self, name: &str, call: impl FnOnce() -> c_int) -> Result<()> {
        // SAFETY: takes nothing.
        let code = unsafe { (self.calls.group_start)() };
        self.check("ncclGroupStart", code)?;
        let called = self.check(name, call());
        // SAFETY: takes nothing.
        let code = unsafe { (self.calls.group_end)() };
        called?;
        self.check("ncclGroupEnd", code).map(|_| ())
    }

    /// Gives a communicator back, whatever it does.
    pub(crate) fn abort(&self, handle: Handle) {
        // SAFETY: the communicator is alive and is not used after this. There is nobody to tell of an error.
        unsafe { (self.calls.abort)(handle) };
    }
}
