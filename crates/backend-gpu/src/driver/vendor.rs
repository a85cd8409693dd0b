//! A vendor's driver library, opened at run time. NVIDIA's driver API and HIP differ in names and little else: what
//! is an integer address in one is a pointer in the other, of the same size and passed in the same way.

use std::error::Error;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::mem::ManuallyDrop;
use std::ptr::{null, null_mut};

use libloading::Library;

use super::graph::GraphCalls;
use super::rows::{Row, Style, VendorRow};
use super::{Address, DeviceInfo, Driver, DriverError, Handle, Launch, Result};
use crate::arguments::Argument;

/// Both vendors' code for memory that cannot be had.
const OUT_OF_MEMORY: c_int = 2;
/// Both vendors' flag of a stream that does not wait for the default one.
const NON_BLOCKING: c_uint = 1;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{MAJOR,MINOR}`
const CUDA_CAPABILITY: [c_int; 2] = [75, 76];
/// Larger than any version of `hipDeviceProp_t`, whose layout changed from release to release.
const HIP_PROPERTIES_BYTES: usize = 16 << 10;

macro_rules! table {
    ($($call:ident($($argument:ty),*);)*) => {
        /// What a vendor calls its functions.
        pub(crate) struct Names {
            $(pub $call: &'static str,)*
        }

        /// The functions.
        struct Calls {
            $($call: unsafe extern "C" fn($($argument),*) -> c_int,)*
        }

        impl Calls {
            fn load(library: &Library, file: &str, names: &Names) -> Result<Self> {
                $(let $call = symbol(library, file, names.$call)?;)*
                Ok(Self { $($call,)* })
            }
        }
    };
}

table! {
    init(c_uint);
    count(*mut c_int);
    device_name(*mut c_char, c_int, c_int);
    device_bytes(*mut usize, c_int);
    memory_info(*mut usize, *mut usize);
    alloc(*mut Address, usize);
    free(Address);
    stream_create(*mut Handle, c_uint);
    stream_destroy(Handle);
    wait(Handle);
    zero(Address, u8, usize, Handle);
    copy_in(Address, *const c_void, usize, Handle);
    copy_out(*mut c_void, Address, usize, Handle);
    copy(Address, Address, usize, Handle);
    module_load(*mut Handle, *const c_void);
    module_unload(Handle);
    function(*mut Handle, Handle, *const c_char);
    launch(
        Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void
    );
}

/// How a device becomes current, and what is asked in a vendor's own way.
enum Context {
    Cuda {
        retain: unsafe extern "C" fn(*mut Handle, c_int) -> c_int,
        release: unsafe extern "C" fn(c_int) -> c_int,
        set_current: unsafe extern "C" fn(Handle) -> c_int,
        attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int,
        error_name: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int,
    },
    Hip {
        set_device: unsafe extern "C" fn(c_int) -> c_int,
        properties: unsafe extern "C" fn(*mut c_void, c_int) -> c_int,
        error_name: unsafe extern "C" fn(c_int) -> *const c_char,
    },
}

impl Context {
    fn load(library: &Library, file: &str, style: Style) -> Result<Self> {
        Ok(match style {
            Style::Cuda => Context::Cuda {
                retain: symbol(library, file, "cuDevicePrimaryCtxRetain")?,
                release: symbol(library, file, "cuDevicePrimaryCtxRelease_v2")?,
                set_current: symbol(library, file, "cuCtxSetCurrent")?,
                attribute: symbol(library, file, "cuDeviceGetAttribute")?,
                error_name: symbol(library, file, "cuGetErrorName")?,
            },
            Style::Hip => Context::Hip {
                set_device: symbol(library, file, "hipSetDevice")?,
                properties: symbol(library, file, "hipGetDevicePropertiesR0600")
                    .or_else(|_| symbol(library, file, "hipGetDeviceProperties"))?,
                error_name: symbol(library, file, "hipGetErrorName")?,
            },
        })
    }
}

/// The first of several libraries that opens, with its name.
pub(super) fn open_library(names: &[&str], brings: &'static str) -> Result<(ManuallyDrop<Library>, String)> {
    let mut reasons = Vec::new();
    for name in names {
        // SAFETY: vendors' libraries may be opened by anyone; they are never closed, as their threads live on.
        match unsafe { Library::new(*name) } {
            Ok(library) => return Ok((ManuallyDrop::new(library), name.to_string())),
            // The system's own words are in the source.
            Err(error) => reasons.push(error.source().map_or_else(|| error.to_string(), ToString::to_string)),
        }
    }
    let reason = reasons.into_iter().next().unwrap_or_default();
    Err(DriverError::NoLibrary { tried: names.join(", "), reason, brings })
}

/// A function of a library. The caller names its true type.
pub(super) fn symbol<T: Copy>(library: &Library, file: &str, name: &str) -> Result<T> {
    // SAFETY: callers give the types of the vendors' documentation, and the library is never closed.
    let found = unsafe { library.get::<T>(name.as_bytes()) };
    found.map(|s| *s).map_err(|_| DriverError::NoSymbol { library: file.into(), symbol: name.into() })
}

/// An opened driver.
pub(crate) struct Vendor {
    row: &'static VendorRow,
    calls: Calls,
    context: Context,
    /// `None` where the library is older than they are.
    graphs: Option<GraphCalls>,
    _library: ManuallyDrop<Library>,
}

macro_rules! call {
    ($self:ident.$name:ident($($argument:expr),*)) => {{
        // SAFETY: the function has this signature in the vendor's documentation; pointers among the arguments are to
        // locals or slices that outlive the call (copies: the stream's next wait, see the trait), and handles are
        // those that the driver gave and that `device.rs` has not given back.
        let code = unsafe { ($self.calls.$name)($($argument),*) };
        $self.check($self.row.names.$name, code)
    }};
}

impl Vendor {
    pub fn open(row: &'static VendorRow) -> Result<Self> {
        let (library, file) = open_library(row.libraries, row.brings)?;
        let calls = Calls::load(&library, &file, &row.names)?;
        let context = Context::load(&library, &file, row.style)?;
        let graphs = GraphCalls::load(&library, &file, row.style).ok();
        let vendor = Self { row, calls, context, graphs, _library: library };
        call!(vendor.init(0))?;
        Ok(vendor)
    }

    fn check(&self, call: &str, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        Err(DriverError::Call { call: call.into(), code, words: self.words(code) })
    }

    /// The vendor's own name of an error.
    fn words(&self, code: c_int) -> String {
        let mut text: *const c_char = null();
        match self.context {
            // SAFETY: the call writes a pointer to a constant string, or none.
            Context::Cuda { error_name, .. } => unsafe {
                error_name(code, &mut text);
            },
            // SAFETY: the call returns a pointer to a constant string.
            Context::Hip { error_name, .. } => text = unsafe { error_name(code) },
        }
        if text.is_null() {
            return "unknown".into();
        }
        // SAFETY: a constant string of the library, which stays open.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }

    fn graph_calls(&self) -> Result<&GraphCalls> {
        let none = || DriverError::NoSymbol { library: self.row.name.into(), symbol: "graphs".into() };
        self.graphs.as_ref().ok_or_else(none)
    }

    fn arch(&self, device: usize) -> Result<String> {
        match self.context {
            Context::Cuda { attribute, .. } => {
                let mut capability = [0; 2];
                for (value, which) in capability.iter_mut().zip(CUDA_CAPABILITY) {
                    // SAFETY: the call writes one integer.
                    let code = unsafe { attribute(value, which, device as c_int) };
                    self.check("cuDeviceGetAttribute", code)?;
                }
                Ok(format!("sm_{}{}", capability[0], capability[1]))
            }
            Context::Hip { properties, .. } => {
                let mut bytes = vec![0u8; HIP_PROPERTIES_BYTES];
                // SAFETY: the call writes a struct of at most a few KB, whichever version it is.
                let code = unsafe { properties(bytes.as_mut_ptr().cast(), device as c_int) };
                self.check("hipGetDeviceProperties", code)?;
                arch_among(&bytes).ok_or_else(|| DriverError::UnknownArch("no name in its properties".into()))
            }
        }
    }
}

/// The architecture's name, such as `gfx928`, wherever it lies in a struct of unknown layout. Features such as
/// `:sramecc+:xnack-` stay: code for other ones does not load.
fn arch_among(bytes: &[u8]) -> Option<String> {
    let is_start = |at: &usize| bytes[*at..].starts_with(b"gfx") && bytes.get(at + 3).is_some_and(u8::is_ascii_digit);
    let start = (0..bytes.len()).find(is_start)?;
    let is_name = |b: &u8| b.is_ascii_alphanumeric() || b":+-".contains(b);
    let name = bytes[start..].iter().copied().take_while(is_name).take(64).collect();
    String::from_utf8(name).ok()
}

impl Driver for Vendor {
    fn name(&self) -> &'static str {
        self.row.name
    }

    fn count(&self) -> Result<usize> {
        let mut count = 0;
        call!(self.count(&mut count))?;
        Ok(count.max(0) as usize)
    }

    fn describe(&self, device: usize) -> Result<DeviceInfo> {
        let mut name = [0 as c_char; 256];
        call!(self.device_name(name.as_mut_ptr(), 255, device as c_int))?;
        let name = name.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect::<Vec<u8>>();
        let (mut free_bytes, mut memory_bytes, mut total) = (0, 0, 0);
        call!(self.device_bytes(&mut memory_bytes, device as c_int))?;
        call!(self.memory_info(&mut free_bytes, &mut total))?;
        let arch = self.arch(device)?;
        let warp = Row::warp_of(&arch);
        Ok(DeviceInfo { name: String::from_utf8_lossy(&name).into_owned(), arch, warp, memory_bytes, free_bytes })
    }

    fn retain(&self, device: usize) -> Result<Handle> {
        let Context::Cuda { retain, .. } = self.context else { return Ok(0) };
        let mut context = 0;
        // SAFETY: the call writes one handle.
        let code = unsafe { retain(&mut context, device as c_int) };
        self.check("cuDevicePrimaryCtxRetain", code)?;
        Ok(context)
    }

    fn release(&self, device: usize) -> Result<()> {
        let Context::Cuda { release, .. } = self.context else { return Ok(()) };
        // SAFETY: it was retained, and all that lived in it is gone.
        let code = unsafe { release(device as c_int) };
        self.check("cuDevicePrimaryCtxRelease_v2", code)
    }

    fn bind(&self, device: usize, context: Handle) -> Result<()> {
        match self.context {
            // SAFETY: a context that was retained.
            Context::Cuda { set_current, .. } => self.check("cuCtxSetCurrent", unsafe { set_current(context) }),
            // SAFETY: a plain number.
            Context::Hip { set_device, .. } => self.check("hipSetDevice", unsafe { set_device(device as c_int) }),
        }
    }

    fn alloc(&self, bytes: usize) -> Result<Address> {
        let mut address = 0;
        match call!(self.alloc(&mut address, bytes)) {
            Err(DriverError::Call { call, code: OUT_OF_MEMORY, .. }) => Err(DriverError::OutOfMemory { call, bytes }),
            other => other.map(|()| address),
        }
    }

    fn free(&self, address: Address) -> Result<()> {
        call!(self.free(address))
    }

    fn stream_create(&self) -> Result<Handle> {
        let mut stream = 0;
        call!(self.stream_create(&mut stream, NON_BLOCKING))?;
        Ok(stream)
    }

    fn stream_destroy(&self, stream: Handle) -> Result<()> {
        call!(self.stream_destroy(stream))
    }

    fn wait(&self, stream: Handle) -> Result<()> {
        call!(self.wait(stream))
    }

    fn zero(&self, to: Address, bytes: usize, stream: Handle) -> Result<()> {
        call!(self.zero(to, 0, bytes, stream))
    }

    fn copy_in(&self, to: Address, from: &[u8], stream: Handle) -> Result<()> {
        call!(self.copy_in(to, from.as_ptr().cast(), from.len(), stream))
    }

    fn copy_out(&self, to: &mut [u8], from: Address, stream: Handle) -> Result<()> {
        call!(self.copy_out(to.as_mut_ptr().cast(), from, to.len(), stream))
    }

    fn copy(&self, to: Address, from: Address, bytes: usize, stream: Handle) -> Result<()> {
        call!(self.copy(to, from, bytes, stream))
    }

    fn module_load(&self, image: &[u8]) -> Result<Handle> {
        let mut module = 0;
        call!(self.module_load(&mut module, image.as_ptr().cast()))?;
        Ok(module)
    }

    fn module_unload(&self, module: Handle) -> Result<()> {
        call!(self.module_unload(module))
    }

    fn function(&self, module: Handle, name: &str) -> Result<Handle> {
        let name = CString::new(name).expect("a kernel's name");
        let mut function = 0;
        call!(self.function(&mut function, module, name.as_ptr()))?;
        Ok(function)
    }

    fn launch(&self, launch: &Launch, stream: Handle) -> Result<()> {
        let mut pointers: Vec<*mut c_void> = launch.arguments.iter().map(pointer).collect();
        let ([gx, gy, gz], [bx, by, bz]) = (launch.shape.grid, launch.shape.block);
        let (function, shared) = (launch.function, launch.shape.shared_bytes);
        call!(self.launch(function, gx, gy, gz, bx, by, bz, shared, stream, pointers.as_mut_ptr(), null_mut()))
    }

    fn has_graphs(&self) -> bool {
        self.graphs.is_some()
    }

    fn graph_create(&self, launches: &[Launch]) -> Result<Handle> {
        self.graph_calls()?.create(launches, &|call, code| self.check(call, code))
    }

    fn graph_launch(&self, graph: Handle, stream: Handle) -> Result<()> {
        self.graph_calls()?.launch(graph, stream, &|call, code| self.check(call, code))
    }

    fn graph_destroy(&self, graph: Handle) -> Result<()> {
        self.graph_calls()?.destroy(graph, &|call, code| self.check(call, code))
    }
}

/// Where the value of an argument lies, for kernels only to read.
pub(super) fn pointer(argument: &Argument) -> *mut c_void {
    fn at<T>(value: &T) -> *mut c_void {
        std::ptr::from_ref(value).cast_mut().cast()
    }
    match argument {
        Argument::Address(value) | Argument::U64(value) => at(value),
        Argument::U32(value) => at(value),
        Argument::F32(value) => at(value),
        Argument::View(value) => at(value),
        Argument::Step(value) => at(value),
        Argument::Kv(value) => at(value),
        Argument::Groups(value) => at(value),
        Argument::Route(value) => at(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_architecture_is_found_in_any_layout() {
        let check = |bytes: &[u8], arch: Option<&str>| assert_eq!(arch_among(bytes).as_deref(), arch);
        check(b"\0\0K100_AI\0\x01\x02gfx928\0\0", Some("gfx928"));
        check(b"gfx name\0gfx90a:sramecc+:xnack-\0x", Some("gfx90a:sramecc+:xnack-"));
        check(b"gfx", None);
        check(b"", None);
    }

    #[test]
    fn a_missing_library_is_named_with_what_brings_it() {
        let error = open_library(&["libnosuch.so.1", "libnosuch.so"], "nothing brings it").err().unwrap().to_string();
        assert!(error.starts_with("none of libnosuch.so.1, libnosuch.so can be opened; nothing brings it"), "{error}");
    }
}
