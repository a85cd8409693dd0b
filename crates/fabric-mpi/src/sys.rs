//! MPI as the shim has it, with owners for what it holds.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, Ordering};

// shim.c
unsafe extern "C" {
    fn lingqu_mpi_init(rank: *mut c_int, size: *mut c_int) -> c_int;
    fn lingqu_mpi_share(bytes: *mut c_void, count: c_int) -> c_int;
    fn lingqu_mpi_send(bytes: *const c_void, count: c_int, rank: c_int, request: *mut *mut c_void) -> c_int;
    fn lingqu_mpi_probe(source: *mut c_int, count: *mut c_int, message: *mut *mut c_void) -> c_int;
    fn lingqu_mpi_receive(bytes: *mut c_void, count: c_int, message: *mut c_void, request: *mut *mut c_void) -> c_int;
    fn lingqu_mpi_test(request: *mut c_void, is_done: *mut c_int) -> c_int;
    fn lingqu_mpi_finalize() -> c_int;
    fn lingqu_mpi_describe(code: c_int, text: *mut c_char, count: c_int);
}

/// The error is what MPI says of a call that failed.
pub(crate) type Result<T> = std::result::Result<T, String>;

/// MPI is begun once in the life of a process.
static BEGUN: AtomicBool = AtomicBool::new(false);

/// MPI between its beginning and its end, on the thread that began it.
pub(crate) struct Mpi {
    pub rank: usize,
    pub size: usize,
    /// Neither Send nor Sync.
    thread: PhantomData<*const ()>,
}

fn ok(code: c_int) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    let mut text: [c_char; 512] = [0; 512];
    // SAFETY: `text` has as many bytes as are told, and ends with a 0 whatever is written.
    let words = unsafe {
        lingqu_mpi_describe(code, text.as_mut_ptr(), text.len() as c_int);
        CStr::from_ptr(text.as_ptr())
    };
    Err(words.to_string_lossy().into_owned())
}

impl Mpi {
    pub fn begin() -> Result<Self> {
        if BEGUN.swap(true, Ordering::SeqCst) {
            return Err("MPI was begun already".into());
        }
        let (mut rank, mut size) = (0, 0);
        // SAFETY: called once in the process; the two numbers outlive the call.
        ok(unsafe { lingqu_mpi_init(&mut rank, &mut size) })?;
        Ok(Self { rank: rank as usize, size: size as usize, thread: PhantomData })
    }

    /// Gives all ranks the bytes of rank 0. All call it, with as many bytes.
    pub fn share(&self, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: the bytes outlive the call, which blocks until they are written.
        ok(unsafe { lingqu_mpi_share(bytes.as_mut_ptr().cast(), bytes.len() as c_int) })
    }

    /// Starts to send; messages to one rank arrive in the order of these calls.
    pub fn send(&self, bytes: Vec<u8>, rank: usize) -> Result<Transfer> {
        let count = bytes.len().try_into().map_err(|_| format!("a message of {} bytes", bytes.len()))?;
        let mut request = null_mut();
        // SAFETY: the transfer keeps the bytes, which do not move with it, until MPI is done with them.
        ok(unsafe { lingqu_mpi_send(bytes.as_ptr().cast(), count, rank as c_int, &mut request) })?;
        Ok(Transfer { bytes, request: NonNull::new(request), rank })
    }

    /// Starts to receive the next message of anybody, if there is one. More than `bytes_max` are an error.
    pub fn receive(&self, bytes_max: usize) -> Result<Option<Transfer>> {
        let (mut source, mut count, mut message) = (0, 0, null_mut());
        // SAFETY: all three outlive the call.
        ok(unsafe { lingqu_mpi_probe(&mut source, &mut count, &mut message) })?;
        if message.is_null() {
            return Ok(None);
        }
        if !(0..=bytes_max as c_int).contains(&count) {
            return Err(format!("rank {source} sent {count} bytes at once, more than {bytes_max}"));
        }
        let (mut bytes, mut request) = (vec![0; count as usize], null_mut());
        // SAFETY: the message was probed and is received once; the transfer keeps the bytes, which do not move with
        // it, until MPI is done with them.
        ok(unsafe { lingqu_mpi_receive(bytes.as_mut_ptr().cast(), count, message, &mut request) })?;
        Ok(Some(Transfer { bytes, request: NonNull::new(request), rank: source as usize }))
    }

    /// Whether a transfer is over. An error too is its end.
    pub fn is_over(&self, transfer: &mut Transfer) -> Result<bool> {
        let Some(request) = transfer.request else { return Ok(true) };
        let mut is_done = 0;
        // SAFETY: the request is from MPI, of this thread like the only `Mpi`, and not over yet.
        let code = unsafe { lingqu_mpi_test(request.as_ptr(), &mut is_done) };
        if is_done != 0 {
            transfer.request = None;
        }
        ok(code).map(|()| is_done != 0)
    }

    /// Waits for all ranks to do the same.
    pub fn end(self) -> Result<()> {
        // SAFETY: on the thread that began it; this was the only `Mpi`, so nothing is called after it.
        ok(unsafe { lingqu_mpi_finalize() })
    }
}

/// Bytes on their way.
pub(crate) struct Transfer {
    bytes: Vec<u8>,
    /// Until it is over.
    request: Option<NonNull<c_void>>,
    /// Where to, or where from.
    pub rank: usize,
}

impl Transfer {
    /// Of a transfer that is over.
    pub fn into_bytes(mut self) -> Vec<u8> {
        assert!(self.request.is_none(), "taken before it is over");
        std::mem::take(&mut self.bytes)
    }
}

impl Drop for Transfer {
    /// MPI may still read or write the bytes of one that is not over: they are never freed.
    fn drop(&mut self) {
        if self.request.is_some() {
            std::mem::forget(std::mem::take(&mut self.bytes));
        }
    }
}
