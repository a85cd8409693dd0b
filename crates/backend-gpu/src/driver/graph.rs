//! Graphs of kernels by a vendor's library: built node by node, each after the one before it. Nothing is captured from
//! a stream, so no other thread can disturb it.
//!
//! The types are those of NVIDIA's driver API from CUDA 11.4 on (`CUDA_KERNEL_NODE_PARAMS_v1`) and of HIP from ROCm 5
//! on (`hipKernelNodeParams`, whose `func` may be a function of a module).

use std::ffi::{c_int, c_uint, c_ulonglong, c_void};
use std::ptr::null_mut;

use libloading::Library;

use super::rows::Style;
use super::vendor::{pointer, symbol};
use super::{Handle, Launch, Result};

/// Makes an error of what a call gave back.
type Check<'a> = &'a dyn Fn(&str, c_int) -> Result<()>;

/// The functions, the same for both vendors but for the node's parameters.
pub(super) struct GraphCalls {
    style: Style,
    create: unsafe extern "C" fn(*mut Handle, c_uint) -> c_int,
    add_kernel: unsafe extern "C" fn(*mut Handle, Handle, *const Handle, usize, *const c_void) -> c_int,
    instantiate: unsafe extern "C" fn(*mut Handle, Handle, c_ulonglong) -> c_int,
    launch: unsafe extern "C" fn(Handle, Handle) -> c_int,
    destroy_exec: unsafe extern "C" fn(Handle) -> c_int,
    destroy: unsafe extern "C" fn(Handle) -> c_int,
}

#[repr(C)]
struct CudaNode {
    function: Handle,
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared_bytes: c_uint,
    arguments: *mut *mut c_void,
    extra: *mut *mut c_void,
}

#[repr(C)]
struct HipNode {
    block: [c_uint; 3],
    extra: *mut *mut c_void,
    function: Handle,
    grid: [c_uint; 3],
    arguments: *mut *mut c_void,
    shared_bytes: c_uint,
}

/// A graph that is destroyed however its making ends: what runs is its instance.
struct Open<'a> {
    calls: &'a GraphCalls,
    graph: Handle,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        // SAFETY: created by the same library and used no more.
        unsafe { (self.calls.destroy)(self.graph) };
    }
}

impl GraphCalls {
    pub fn load(library: &Library, file: &str, style: Style) -> Result<Self> {
        let prefix = match style {
            Style::Cuda => "cu",
            Style::Hip => "hip",
        };
        let named = |call: &str| format!("{prefix}Graph{call}");
        Ok(Self {
            style,
            create: symbol(library, file, &named("Create"))?,
            add_kernel: symbol(library, file, &named("AddKernelNode"))?,
            instantiate: symbol(library, file, &named("InstantiateWithFlags"))?,
            launch: symbol(library, file, &named("Launch"))?,
            destroy_exec: symbol(library, file, &named("ExecDestroy"))?,
            destroy: symbol(library, file, &named("Destroy"))?,
        })
    }

    pub fn create(&self, launches: &[Launch], check: Check<'_>) -> Result<Handle> {
        let mut graph = 0;
        // SAFETY: the call writes one handle.
        check("GraphCreate", unsafe { (self.create)(&mut graph, 0) })?;
        let open = Open { calls: self, graph };
        let mut before = None;
        for launch in launches {
            before = Some(self.add(&open, before, launch, check)?);
        }
        let mut instance = 0;
        // SAFETY: the call writes one handle; the graph is whole.
        check("GraphInstantiateWithFlags", unsafe { (self.instantiate)(&mut instance, graph, 0) })?;
        Ok(instance)
    }

    fn add(&self, open: &Open<'_>, before: Option<Handle>, launch: &Launch, check: Check<'_>) -> Result<Handle> {
        let mut pointers: Vec<*mut c_void> = launch.arguments.iter().map(pointer).collect();
        let (function, shape, arguments) = (launch.function, launch.shape, pointers.as_mut_ptr());
        let (grid, block, shared_bytes, extra) = (shape.grid, shape.block, shape.shared_bytes, null_mut());
        let cuda = CudaNode { function, grid, block, shared_bytes, arguments, extra };
        let hip = HipNode { block, extra, function, grid, arguments, shared_bytes };
        let parameters: *const c_void = match self.style {
            Style::Cuda => std::ptr::from_ref(&cuda).cast(),
            Style::Hip => std::ptr::from_ref(&hip).cast(),
        };
        let mut node = 0;
        // SAFETY: as many nodes before it as said; the call copies parameters and arguments, which are the kernel's.
        let code = unsafe {
            let before = before.as_slice();
            (self.add_kernel)(&mut node, open.graph, before.as_ptr(), before.len(), parameters)
        };
        check("GraphAddKernelNode", code)?;
        Ok(node)
    }

    pub fn launch(&self, instance: Handle, stream: Handle, check: Check<'_>) -> Result<()> {
        // SAFETY: handles that the driver gave and that have not been given back.
        check("GraphLaunch", unsafe { (self.launch)(instance, stream) })
    }

    pub fn destroy(&self, instance: Handle, check: Check<'_>) -> Result<()> {
        // SAFETY: as above; it does not run, and its handle is used no more.
        check("GraphExecDestroy", unsafe { (self.destroy_exec)(instance) })
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn nodes_are_laid_out_as_the_vendors_headers_say() {
        assert_eq!((size_of::<CudaNode>(), offset_of!(CudaNode, arguments)), (56, 40));
        assert_eq!((size_of::<HipNode>(), offset_of!(HipNode, arguments)), (64, 48));
        assert_eq!((offset_of!(HipNode, extra), offset_of!(HipNode, function)), (16, 24));
    }
}
