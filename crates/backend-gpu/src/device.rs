//! Devices, memory, streams and modules that give themselves back.

use std::sync::{Arc, Mutex};

use crate::core::lock;
use crate::driver::bytes::{self, Plain};
use crate::driver::{Address, DeviceInfo, Driver, DriverError, Handle, Launch, Result};
use crate::queue::Queue;

/// Whether launches that come again become graphs of the driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Graphs {
    /// Where the driver has them.
    #[default]
    Made,
    Off,
}

/// A retained device.
struct Context {
    driver: Arc<dyn Driver>,
    ordinal: usize,
    handle: Handle,
}

impl Drop for Context {
    fn drop(&mut self) {
        let _ = self.driver.release(self.ordinal); // nothing can be done about it, and the process may go on
    }
}

/// An open device with one stream, on which all its work runs in order.
pub(crate) struct Device {
    stream: Handle,
    pub info: DeviceInfo,
    queue: Mutex<Queue>,
    context: Context,
}

impl Device {
    /// `graphs`: launches that come again go out as graphs, where the driver has them.
    pub fn open(driver: Arc<dyn Driver>, ordinal: usize, graphs: Graphs) -> Result<Arc<Self>> {
        let count = driver.count()?;
        if count == 0 {
            return Err(DriverError::NoDevice { driver: driver.name() });
        }
        if ordinal >= count {
            return Err(DriverError::WrongDevice { asked: ordinal, count });
        }
        let handle = driver.retain(ordinal)?;
        let context = Context { driver, ordinal, handle };
        context.driver.bind(ordinal, handle)?;
        let info = context.driver.describe(ordinal)?;
        let stream = context.driver.stream_create()?;
        let makes_graphs = graphs == Graphs::Made && context.driver.has_graphs();
        Ok(Arc::new(Self { stream, info, queue: Mutex::new(Queue::new(makes_graphs)), context }))
    }

    /// The driver, current on this thread.
    fn bound(&self) -> Result<&dyn Driver> {
        let Context { driver, ordinal, handle } = &self.context;
        driver.bind(*ordinal, *handle)?;
        Ok(&**driver)
    }

    /// The driver, which has every launch by now: what is asked of it comes after them.
    fn in_order(&self) -> Result<&dyn Driver> {
        let driver = self.bound()?;
        lock(&self.queue).flush(driver, self.stream)?;
        Ok(driver)
    }

    pub fn wait(&self) -> Result<()> {
        self.in_order()?.wait(self.stream)
    }

    /// Errors may be those of earlier launches.
    pub fn launch(&self, launch: Launch) -> Result<()> {
        lock(&self.queue).push(self.bound()?, self.stream, launch)
    }

    /// Waits for all work before something goes that it may use, whatever became of it.
    fn settle(&self, driver: &dyn Driver) {
        let mut queue = lock(&self.queue);
        queue.flush_silently(driver, self.stream);
        queue.forget(driver, self.stream);
        let _ = driver.wait(self.stream); // told by the next call, if any comes
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Ok(driver) = self.bound() {
            self.settle(driver);
            let _ = driver.stream_destroy(self.stream);
        }
    }
}

/// Memory of a device.
pub(crate) struct Memory {
    device: Arc<Device>,
    address: Address,
    bytes: usize,
}

impl Memory {
    /// Uninitialised. Nothing is asked of the driver for 0 bytes, or for more than the device has.
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        if bytes > device.info.memory_bytes {
            return Err(DriverError::OutOfMemory { call: "alloc".into(), bytes });
        }
        let address = if bytes == 0 { 0 } else { device.bound()?.alloc(bytes)? };
        Ok(Self { device: device.clone(), address, bytes })
    }

    pub fn zeroed(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        let memory = Self::new(device, bytes)?;
        if bytes > 0 {
            device.in_order()?.zero(memory.address, bytes, device.stream)?;
        }
        Ok(memory)
    }

    /// With this content.
    pub fn of<T: Plain>(device: &Arc<Device>, values: &[T]) -> Result<Self> {
        let memory = Self::new(device, size_of_val(values))?;
        memory.write(0, values)?;
        Ok(memory)
    }

    pub fn address(&self) -> Address {
        self.address
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn check(&self, offset_bytes: usize, bytes: usize) {
        let end = offset_bytes.checked_add(bytes);
        assert!(end.is_some_and(|end| end <= self.bytes), "{offset_bytes} + {bytes} of {} bytes", self.bytes);
    }

    /// Copies in, and waits: the host's values may change afterwards.
    pub fn write<T: Plain>(&self, offset_bytes: usize, values: &[T]) -> Result<()> {
        let values = bytes::of(values);
        self.check(offset_bytes, values.len());
        if values.is_empty() {
            return Ok(());
        }
        let driver = self.device.in_order()?;
        driver.copy_in(self.address + offset_bytes as Address, values, self.device.stream)?;
        driver.wait(self.device.stream)
    }

    /// Waits for all work, and copies out.
    pub fn read<T: Plain>(&self, offset_bytes: usize, values: &mut [T]) -> Result<()> {
        let values = bytes::of_mut(values);
        self.check(offset_bytes, values.len());
        let driver = self.device.in_order()?;
        if !values.is_empty() {
            driver.copy_out(values, self.address + offset_bytes as Address, self.device.stream)?;
        }
        driver.wait(self.device.stream)
    }

    /// Copies from other memory of the same device.
    pub fn copy_from(&self, from: &Memory, bytes: usize) -> Result<()> {
        self.check(0, bytes);
        from.check(0, bytes);
        if bytes == 0 {
            return Ok(());
        }
        self.device.in_order()?.copy(self.address, from.address, bytes, self.device.stream)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.address == 0 {
            return;
        }
        if let Ok(driver) = self.device.bound() {
            lock(&self.device.queue).flush_silently(driver, self.device.stream);
            let _ = driver.free(self.address); // waits for the work that uses it
        }
    }
}

/// Loaded kernels.
pub(crate) struct Module {
    device: Arc<Device>,
    handle: Handle,
}

impl Module {
    pub fn load(device: &Arc<Device>, image: &[u8]) -> Result<Self> {
        let handle = device.bound()?.module_load(image)?;
        Ok(Self { device: device.clone(), handle })
    }

    pub fn function(&self, name: &str) -> Result<Handle> {
        self.device.bound()?.function(self.handle, name)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if let Ok(driver) = self.device.bound() {
            self.device.settle(driver);
            let _ = driver.module_unload(self.handle);
        }
    }
}
