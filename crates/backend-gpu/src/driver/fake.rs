//! A driver without a device, for tests: it counts what is alive, keeps memory in the host, runs no kernel, and fails
//! the call it is told to.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Address, DeviceInfo, Driver, DriverError, Handle, Launch, Result};
use crate::arguments::Argument;

#[derive(Default)]
pub(crate) struct Fake {
    state: Mutex<State>,
}

#[derive(Default)]
pub(crate) struct State {
    /// Calls so far that can fail, by name.
    pub calls: Vec<&'static str>,
    /// The call to fail, by its number, and how.
    pub fails: Option<(usize, Failure)>,
    /// The calls to fail, by name.
    pub fails_named: Option<&'static str>,
    pub retained: usize,
    pub streams: usize,
    pub modules: usize,
    /// Launches of each graph that is alive.
    pub graphs: BTreeMap<Handle, usize>,
    /// Kernels started, be it one by one or in graphs.
    pub launches: usize,
    pub memory: BTreeMap<Address, Vec<u8>>,
    last: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    OutOfMemory,
    /// From this call on every call fails.
    Lost,
}

impl State {
    /// What was not given back.
    pub fn alive(&self) -> [usize; 5] {
        [self.retained, self.streams, self.modules, self.memory.len(), self.graphs.len()]
    }

    fn next(&mut self) -> u64 {
        self.last += 1 << 20;
        self.last
    }

    fn block(&mut self, at: Address, bytes: usize) -> &mut [u8] {
        let (start, block) = self.memory.range_mut(..=at).next_back().expect("memory that is alive");
        &mut block[(at - start) as usize..][..bytes]
    }

    /// Views must lie in memory that is alive.
    fn check(&mut self, launch: &Launch) {
        let threads: u32 = launch.shape.block.iter().product();
        assert!((1..=1024).contains(&threads) && !launch.shape.grid.contains(&0), "{launch:?}");
        for argument in &launch.arguments {
            if let Argument::View(view) = argument
                && view.rows > 0
                && view.data != 0
            {
                let last = u64::from(view.rows - 1) * view.row_stride
                    + u64::from(view.heads - 1) * view.head_stride
                    + u64::from(view.len);
                self.block(view.data, last as usize * 4);
            }
        }
    }
}

impl Fake {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, call: &'static str) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        let number = state.calls.len();
        state.calls.push(call);
        let refused = || Err(DriverError::Call { call: call.into(), code: 1, words: "refused".into() });
        match state.fails {
            _ if state.fails_named == Some(call) => refused(),
            Some((at, Failure::OutOfMemory)) if at == number => {
                Err(DriverError::OutOfMemory { call: call.into(), bytes: 77 })
            }
            Some((at, Failure::Lost)) if at <= number => {
                Err(DriverError::Call { call: call.into(), code: 999, words: "the device is lost".into() })
            }
            _ => Ok(state),
        }
    }

    /// What gives back works on a lost device too, as far as our books go; it may still report an error.
    fn leave(&self, call: &'static str, give_back: impl FnOnce(&mut State)) -> Result<()> {
        let entered = self.enter(call).map(drop);
        give_back(&mut self.state());
        entered
    }
}

impl Driver for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn count(&self) -> Result<usize> {
        self.enter("count").map(|_| 1)
    }

    fn describe(&self, _: usize) -> Result<DeviceInfo> {
        drop(self.enter("describe")?);
        let memory_bytes = 1 << 30;
        let arch = "warp32".into();
        Ok(DeviceInfo { name: "fake".into(), arch, warp: 32, memory_bytes, free_bytes: memory_bytes })
    }

    fn retain(&self, _: usize) -> Result<Handle> {
        self.enter("retain")?.retained += 1;
        Ok(5)
    }

    fn release(&self, _: usize) -> Result<()> {
        self.leave("release", |state| state.retained -= 1)
    }

    /// Never fails, so that what must be given back can be: a thread's context is not the device's.
    fn bind(&self, _: usize, context: Handle) -> Result<()> {
        assert_eq!(context, 5);
        Ok(())
    }

    fn alloc(&self, bytes: usize) -> Result<Address> {
        let mut state = self.enter("alloc")?;
        let address = state.next();
        state.memory.insert(address, vec![0; bytes]);
        Ok(address)
    }

    fn free(&self, address: Address) -> Result<()> {
        self.leave("free", |state| assert!(state.memory.remove(&address).is_some(), "freed twice"))
    }

    fn stream_create(&self) -> Result<Handle> {
        self.enter("stream_create")?.streams += 1;
        Ok(3)
    }

    fn stream_destroy(&self, _: Handle) -> Result<()> {
        self.leave("stream_destroy", |state| state.streams -= 1)
    }

    fn wait(&self, _: Handle) -> Result<()> {
        self.enter("wait").map(drop)
    }

    fn zero(&self, to: Address, bytes: usize, _: Handle) -> Result<()> {
        self.enter("zero").map(|mut state| state.block(to, bytes).fill(0))
    }

    fn copy_in(&self, to: Address, from: &[u8], _: Handle) -> Result<()> {
        self.enter("copy_in").map(|mut state| state.block(to, from.len()).copy_from_slice(from))
    }

    fn copy_out(&self, to: &mut [u8], from: Address, _: Handle) -> Result<()> {
        self.enter("copy_out").map(|mut state| to.copy_from_slice(state.block(from, to.len())))
    }

    fn copy(&self, to: Address, from: Address, bytes: usize, _: Handle) -> Result<()> {
        let mut state = self.enter("copy")?;
        let held = state.block(from, bytes).to_vec();
        state.block(to, bytes).copy_from_slice(&held);
        Ok(())
    }

    fn module_load(&self, _: &[u8]) -> Result<Handle> {
        self.enter("module_load")?.modules += 1;
        Ok(4)
    }

    fn module_unload(&self, _: Handle) -> Result<()> {
        self.leave("module_unload", |state| state.modules -= 1)
    }

    fn function(&self, _: Handle, _: &str) -> Result<Handle> {
        self.enter("function").map(|_| 6)
    }

    fn launch(&self, launch: &Launch, _: Handle) -> Result<()> {
        let mut state = self.enter("launch")?;
        state.check(launch);
        state.launches += 1;
        Ok(())
    }

    fn has_graphs(&self) -> bool {
        true
    }

    fn graph_create(&self, launches: &[Launch]) -> Result<Handle> {
        let mut state = self.enter("graph_create")?;
        launches.iter().for_each(|launch| state.check(launch));
        let handle = state.next();
        state.graphs.insert(handle, launches.len());
        Ok(handle)
    }

    fn graph_launch(&self, graph: Handle, _: Handle) -> Result<()> {
        let mut state = self.enter("graph_launch")?;
        state.launches += state.graphs[&graph];
        Ok(())
    }

    fn graph_destroy(&self, graph: Handle) -> Result<()> {
        self.leave("graph_destroy", |state| assert!(state.graphs.remove(&graph).is_some(), "destroyed twice"))
    }
}
