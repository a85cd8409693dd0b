//! The emulator as a driver: device memory is memory of the host that only this file touches, and a kernel is a
//! function of a shared object (`kernels/emu/grid.h` runs its blocks and threads). For tests: it is slow, and finds
//! copies and kernels that leave their memory, barriers that not all reach, and results that depend on the schedule.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, c_char, c_int, c_uint, c_ulong, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use libloading::Library;

use super::command::Folder;
use super::vendor::pointer;
use super::{Address, DeviceInfo, Driver, DriverError, Handle, Launch, Result};
use crate::config::Emulation;

/// Bytes on both sides of an allocation that nobody may write.
const GUARD_BYTES: usize = 256;
const GUARD: u8 = 0xa5;
/// What fresh memory holds: as f32 a NaN.
const FRESH: u8 = 0xff;
/// The one stream; work is done when it is given.
const STREAM: Handle = 1;
const ERROR_BYTES: usize = 1024;

type Launcher = unsafe extern "C" fn(
    *const c_uint,
    *const c_uint,
    c_uint,
    *mut *mut c_void,
    c_uint,
    c_uint,
    *mut c_char,
    c_ulong,
) -> c_int;

/// The host's own processor as a device.
pub(crate) struct Emu {
    emulation: Emulation,
    memory_bytes: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By address.
    blocks: BTreeMap<Address, Block>,
    used_bytes: usize,
    modules: HashMap<Handle, Library>,
    functions: HashMap<Handle, Launcher>,
    graphs: HashMap<Handle, Vec<Launch>>,
    last_handle: Handle,
}

/// An allocation between its guards.
struct Block {
    bytes: usize,
}

impl Block {
    fn layout(bytes: usize) -> Option<Layout> {
        Layout::from_size_align(bytes.checked_add(2 * GUARD_BYTES)?, GUARD_BYTES).ok()
    }

    fn guards_are_whole(&self, address: Address) -> bool {
        let guard = |start: Address| {
            // SAFETY: `alloc` made the guards with the block, which is still in the table.
            unsafe { std::slice::from_raw_parts(start as *const u8, GUARD_BYTES) }.iter().all(|b| *b == GUARD)
        };
        guard(address - GUARD_BYTES as Address) && guard(address + self.bytes as Address)
    }
}

fn failed(call: &str, words: impl Into<String>) -> DriverError {
    DriverError::Call { call: format!("emu {call}"), code: 1, words: words.into() }
}

impl Emu {
    pub fn new(emulation: Emulation) -> Self {
        let memory_bytes = emulation.memory_bytes.or_else(machine_bytes).unwrap_or(1 << 32);
        Self { emulation, memory_bytes, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `touch` on bytes of the device, which must lie in one allocation.
    fn with(&self, call: &str, at: Address, bytes: usize, touch: impl FnOnce(*mut u8)) -> Result<()> {
        let state = self.state();
        let inside = |(start, block): (&Address, &Block)| {
            at.checked_add(bytes as Address).is_some_and(|end| end <= start + block.bytes as Address)
        };
        if !state.blocks.range(..=at).next_back().is_some_and(inside) {
            return Err(failed(call, format!("{bytes} bytes at {at:#x} are not within an allocation")));
        }
        touch(at as *mut u8);
        Ok(())
    }
}

/// Memory of the whole machine, where it says so.
fn machine_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: usize = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}

impl Driver for Emu {
    fn name(&self) -> &'static str {
        "emu"
    }

    fn count(&self) -> Result<usize> {
        Ok(1)
    }

    fn describe(&self, _: usize) -> Result<DeviceInfo> {
        let warp = self.emulation.warp;
        Ok(DeviceInfo {
            name: "the host's processor, emulating".into(),
            arch: format!("warp{warp}"),
            warp,
            memory_bytes: self.memory_bytes,
            free_bytes: self.memory_bytes.saturating_sub(self.state().used_bytes),
        })
    }

    fn retain(&self, _: usize) -> Result<Handle> {
        Ok(1)
    }

    fn release(&self, _: usize) -> Result<()> {
        Ok(())
    }

    fn bind(&self, _: usize, _: Handle) -> Result<()> {
        Ok(())
    }

    fn alloc(&self, bytes: usize) -> Result<Address> {
        let refused = || DriverError::OutOfMemory { call: "emu alloc".into(), bytes };
        let mut state = self.state();
        let used_bytes = state.used_bytes.checked_add(bytes).filter(|used| *used <= self.memory_bytes);
        let layout = Block::layout(bytes).ok_or_else(refused)?;
        let used_bytes = used_bytes.ok_or_else(refused)?;
        // SAFETY: the layout's size is not 0, as it has guards; all of it is written before anyone reads.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            return Err(refused());
        }
        // SAFETY: within the allocation just made.
        let address = unsafe {
            start.write_bytes(GUARD, GUARD_BYTES);
            start.add(GUARD_BYTES).write_bytes(FRESH, bytes);
            start.add(GUARD_BYTES + bytes).write_bytes(GUARD, GUARD_BYTES);
            start.add(GUARD_BYTES) as Address
        };
        state.used_bytes = used_bytes;
        state.blocks.insert(address, Block { bytes });
        Ok(address)
    }

    fn free(&self, address: Address) -> Result<()> {
        let mut state = self.state();
        let Some(block) = state.blocks.remove(&address) else {
            return Err(failed("free", format!("{address:#x} is not an allocation")));
        };
        state.used_bytes -= block.bytes;
        let whole = block.guards_are_whole(address);
        let layout = Block::layout(block.bytes).expect("the layout it was made with");
        // SAFETY: made by `alloc` with this layout, and out of the table now.
        unsafe { dealloc((address as *mut u8).sub(GUARD_BYTES), layout) };
        if whole { Ok(()) } else { Err(failed("free", "a kernel wrote beside an allocation")) }
    }

    fn stream_create(&self) -> Result<Handle> {
        Ok(STREAM)
    }

    fn stream_destroy(&self, _: Handle) -> Result<()> {
        Ok(())
    }

    /// Nothing is under way; but whoever wrote where it must not is found here.
    fn wait(&self, _: Handle) -> Result<()> {
        match self.state().blocks.iter().find(|(address, block)| !block.guards_are_whole(**address)) {
            Some((_, block)) => Err(failed("wait", format!("a kernel wrote beside {} bytes", block.bytes))),
            None => Ok(()),
        }
    }

    fn zero(&self, to: Address, bytes: usize, _: Handle) -> Result<()> {
        // SAFETY: `with` has checked that the bytes are the device's.
        self.with("zero", to, bytes, |at| unsafe { at.write_bytes(0, bytes) })
    }

    fn copy_in(&self, to: Address, from: &[u8], _: Handle) -> Result<()> {
        // SAFETY: as above, and no slice of the host's reaches into device memory.
        self.with("copy in", to, from.len(), |at| unsafe { at.copy_from_nonoverlapping(from.as_ptr(), from.len()) })
    }

    fn copy_out(&self, to: &mut [u8], from: Address, _: Handle) -> Result<()> {
        let bytes = to.len();
        // SAFETY: as above.
        self.with("copy out", from, bytes, |at| unsafe { to.as_mut_ptr().copy_from_nonoverlapping(at, bytes) })
    }

    fn copy(&self, to: Address, from: Address, bytes: usize, _: Handle) -> Result<()> {
        let mut source = std::ptr::null_mut();
        self.with("copy from", from, bytes, |at| source = at)?;
        // SAFETY: both ranges were found in the table; `copy` allows them to overlap.
        self.with("copy to", to, bytes, |at| unsafe { at.copy_from(source, bytes) })
    }

    fn module_load(&self, image: &[u8]) -> Result<Handle> {
        let folder = Folder::new()?;
        folder.write("kernels.so", image)?;
        // SAFETY: our own kernels, whose only initialisers are those of the C++ library.
        let opened = unsafe { Library::new(folder.path.join("kernels.so")) };
        let library = opened.map_err(|e| failed("module_load", e.to_string()))?;
        // SAFETY: the type that kernels/README.md gives.
        let warp = unsafe { library.get::<unsafe extern "C" fn() -> c_uint>("lq_emu_warp") };
        // SAFETY: as above.
        let warp = warp.map(|warp| unsafe { warp() } as usize).map_err(|e| failed("module_load", e.to_string()))?;
        if warp != self.emulation.warp {
            return Err(failed("module_load", format!("kernels for warps of {warp}, not {}", self.emulation.warp)));
        }
        let mut state = self.state();
        state.last_handle += 1;
        let handle = state.last_handle;
        state.modules.insert(handle, library);
        Ok(handle)
    }

    fn module_unload(&self, module: Handle) -> Result<()> {
        let found = self.state().modules.remove(&module);
        found.map(drop).ok_or_else(|| failed("module_unload", "no such module"))
    }

    fn function(&self, module: Handle, name: &str) -> Result<Handle> {
        let mut state = self.state();
        let library = state.modules.get(&module).ok_or_else(|| failed("function", "no such module"))?;
        // SAFETY: the type that kernels/README.md gives to every exported launcher.
        let launch = unsafe { library.get::<Launcher>(format!("lq_launch_{name}").as_bytes()) };
        let launch = *launch.map_err(|e| failed("function", e.to_string()))?;
        state.last_handle += 1;
        let handle = state.last_handle;
        state.functions.insert(handle, launch);
        Ok(handle)
    }

    fn launch(&self, launch: &Launch, _: Handle) -> Result<()> {
        let launcher = self.state().functions.get(&launch.function).copied();
        let launcher = launcher.ok_or_else(|| failed("launch", "no such function"))?;
        let shape = launch.shape;
        let mut pointers: Vec<*mut c_void> = launch.arguments.iter().map(pointer).collect();
        let mut error = [0 as c_char; ERROR_BYTES];
        let (order, threads) = (self.emulation.schedule.number(), self.emulation.os_threads);
        // SAFETY: callers give each kernel its own arguments (see `kernels.rs`), whose addresses are the device's;
        // its module is loaded, as functions live no longer than `device::Module`.
        let code = unsafe {
            launcher(
                shape.grid.as_ptr(),
                shape.block.as_ptr(),
                shape.shared_bytes,
                pointers.as_mut_ptr(),
                order,
                threads,
                error.as_mut_ptr(),
                ERROR_BYTES as c_ulong,
            )
        };
        if code == 0 {
            return Ok(());
        }
        error[ERROR_BYTES - 1] = 0;
        // SAFETY: it ends in NUL, at the latest in its last byte.
        let words = unsafe { CStr::from_ptr(error.as_ptr()) }.to_string_lossy().into_owned();
        Err(DriverError::Call { call: "emu launch".into(), code, words })
    }

    fn has_graphs(&self) -> bool {
        true
    }

    fn graph_create(&self, launches: &[Launch]) -> Result<Handle> {
        let mut state = self.state();
        state.last_handle += 1;
        let handle = state.last_handle;
        state.graphs.insert(handle, launches.to_vec());
        Ok(handle)
    }

    fn graph_launch(&self, graph: Handle, stream: Handle) -> Result<()> {
        let launches = self.state().graphs.get(&graph).cloned();
        let launches = launches.ok_or_else(|| failed("graph_launch", "no such graph"))?;
        launches.iter().try_for_each(|launch| self.launch(launch, stream))
    }

    fn graph_destroy(&self, graph: Handle) -> Result<()> {
        let found = self.state().graphs.remove(&graph);
        found.map(drop).ok_or_else(|| failed("graph_destroy", "no such graph"))
    }
}

impl Drop for Emu {
    fn drop(&mut self) {
        let blocks: Vec<Address> = self.state().blocks.keys().copied().collect();
        for address in blocks {
            let _ = self.free(address); // whoever forgot to free it did not check either
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_only_reached_where_it_was_given() {
        let emu = Emu::new(Emulation { memory_bytes: Some(1 << 16), ..Emulation::default() });
        let at = emu.alloc(8).unwrap();
        let mut out = [0; 8];
        emu.copy_out(&mut out, at, STREAM).unwrap();
        assert_eq!(out, [FRESH; 8]);
        emu.copy_in(at + 2, &[1, 2], STREAM).unwrap();
        emu.copy(at + 6, at + 2, 2, STREAM).unwrap();
        emu.zero(at, 1, STREAM).unwrap();
        emu.copy_out(&mut out, at, STREAM).unwrap();
        assert_eq!(out, [0, FRESH, 1, 2, FRESH, FRESH, 1, 2]);
        for error in [
            emu.copy_in(at + 7, &[1, 2], STREAM),
            emu.copy_in(at - 1, &[1], STREAM),
            emu.copy_out(&mut [0; 9], at, STREAM),
            emu.zero(Address::MAX, 8, STREAM),
            emu.copy(at, at + 4, 5, STREAM),
            emu.free(at + 1),
        ] {
            assert!(error.is_err());
        }
        emu.wait(STREAM).unwrap();
        emu.free(at).unwrap();
        assert!(emu.free(at).is_err());
    }

    #[test]
    fn it_has_no_more_memory_than_it_says() {
        let emu = Emu::new(Emulation { memory_bytes: Some(100), ..Emulation::default() });
        let first = emu.alloc(60).unwrap();
        assert!(matches!(emu.alloc(60), Err(DriverError::OutOfMemory { bytes: 60, .. })));
        assert!(matches!(emu.alloc(usize::MAX), Err(DriverError::OutOfMemory { .. })));
        assert_eq!(emu.describe(0).unwrap().free_bytes, 40);
        emu.free(first).unwrap();
        let second = emu.alloc(100).unwrap();
        emu.free(second).unwrap();
    }

    #[test]
    fn writing_beside_an_allocation_is_found() {
        let emu = Emu::new(Emulation::default());
        let at = emu.alloc(8).unwrap();
        // SAFETY: the guard belongs to the block.
        unsafe { *((at + 8) as *mut u8) = 0 };
        assert!(emu.wait(STREAM).unwrap_err().to_string().contains("wrote beside 8 bytes"));
        assert!(emu.free(at).is_err());
    }
}
