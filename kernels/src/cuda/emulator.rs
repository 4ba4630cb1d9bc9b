//! The device that is no device: `kernels/cuda/emu` runs the kernels on the host.

use std::{
    ffi::{CStr, CString, c_char, c_void},
    sync::Mutex,
};

use candle_core::{Device, Tensor};

use super::{
    Cuda,
    args::{Address, Plain},
    gpu::{Gpu, Launch},
};
use crate::{
    Error, Linear, RawMatrix, Result,
    linear::float_linear,
    tensor::{from_vec, with_slice},
};

type Kernel = unsafe extern "C" fn(*const c_void);
type Find = unsafe extern "C" fn(*const c_char) -> Option<Kernel>;

unsafe extern "C" {
    fn keepwell_emu_alloc(bytes: usize, seed: u32) -> *mut c_void;
    fn keepwell_emu_address(allocation: *mut c_void) -> *mut u8;
    fn keepwell_emu_free(allocation: *mut c_void) -> bool;
    fn keepwell_emu_run(
        kernel: Kernel,
        args: *const c_void,
        grid: *const u32,
        threads: u32,
        shared_bytes: usize,
        seed: u32,
        error: *mut c_char,
        error_bytes: usize,
    ) -> bool;
    fn keepwell_emu_find(name: *const c_char) -> Option<Kernel>;
}

/// Runs the kernels in an order of threads that its seed decides.
pub struct Emulator {
    name: &'static str,
    seed: u32,
    find: Find,
}

/// Kernels that were broken on purpose, to see that the emulator or the tests notice: a source, what
/// was replaced in it, and the kernels.
#[derive(Clone, Copy, Debug)]
pub struct Broken {
    /// What was done.
    pub what: &'static str,
    find: Find,
}

include!(concat!(env!("OUT_DIR"), "/broken.rs"));

impl Emulator {
    /// Seeds also decide on which side of its memory a device buffer has its guard, and whether
    /// scratch memory is used again. The last three do without tensor cores.
    pub fn all() -> [fn() -> Cuda<Self>; 6] {
        [
            || Self::with("cuda-emu-0", 0),
            || Self::with("cuda-emu-1", 1),
            || Self::with("cuda-emu-2", 2),
            || Self::with("cuda-emu", 3).without_tensor_cores("cuda-emu-plain-0"),
            || Self::with("cuda-emu", 4).without_tensor_cores("cuda-emu-plain-1"),
            || Self::with("cuda-emu", 5).without_tensor_cores("cuda-emu-plain-2"),
        ]
    }

    fn with(name: &'static str, seed: u32) -> Cuda<Self> {
        Cuda::on(Self { name, seed, find: keepwell_emu_find })
    }

    pub fn broken(broken: Broken, seed: u32) -> Cuda<Self> {
        Cuda::on(Self { name: broken.what, seed, find: broken.find })
    }
}

/// Memory between two guards.
pub struct Guarded {
    allocation: Mutex<*mut c_void>,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the kernels and the copies below are the only ones to touch the memory, as on a device.
unsafe impl Send for Guarded {}
// SAFETY: as above; who shares a buffer between threads orders what they do with it.
unsafe impl Sync for Guarded {}

impl Guarded {
    fn new(bytes: usize, seed: u32) -> Result<Self> {
        // SAFETY: any number of bytes may be asked for.
        let allocation = unsafe { keepwell_emu_alloc(bytes, seed) };
        if allocation.is_null() {
            return Err(Error::Unsupported(format!("cannot take {bytes} bytes of memory")));
        }
        // SAFETY: it was allocated.
        let start = unsafe { keepwell_emu_address(allocation) };
        Ok(Self { allocation: Mutex::new(allocation), start, bytes })
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let allocation = *self.allocation.get_mut().expect("nobody panics with it");
        // SAFETY: allocated in `new`, freed once.
        let intact = unsafe { keepwell_emu_free(allocation) };
        if !std::thread::panicking() {
            assert!(intact, "a kernel wrote beside a buffer of {} bytes", self.bytes);
        }
    }
}

impl Gpu for Emulator {
    type Buffer = Guarded;

    fn name(&self) -> &'static str {
        self.name
    }

    fn device(&self) -> Device {
        Device::Cpu
    }

    fn num_multiprocessors(&self) -> usize {
        4
    }

    fn keeps_scratch(&self) -> bool {
        self.seed % 3 == 1
    }

    fn alloc(&self, bytes: usize) -> Result<Guarded> {
        Guarded::new(bytes, self.seed)
    }

    fn read(&self, from: &Guarded, offset: usize, into: &mut [u8]) -> Result<()> {
        assert!(offset + into.len() <= from.bytes);
        // SAFETY: within the buffer, as just seen; a slice of the host is not part of it.
        unsafe {
            from.start.add(offset).copy_to_nonoverlapping(into.as_mut_ptr(), into.len());
        }
        Ok(())
    }

    fn write(&self, to: &Guarded, offset: usize, from: &[u8]) -> Result<()> {
        assert!(offset + from.len() <= to.bytes);
        // SAFETY: as above.
        unsafe { to.start.add(offset).copy_from_nonoverlapping(from.as_ptr(), from.len()) };
        Ok(())
    }

    fn copy(&self, buffer: &Guarded, from: usize, to: usize, len: usize) -> Result<()> {
        assert!(from.max(to) + len <= buffer.bytes && from.abs_diff(to) >= len);
        // SAFETY: both places are within the buffer and apart, as just seen.
        unsafe {
            buffer.start.add(to).copy_from_nonoverlapping(buffer.start.add(from), len);
        }
        Ok(())
    }

    fn clear(&self, buffer: &Guarded, offset: usize, len: usize) -> Result<()> {
        assert!(offset + len <= buffer.bytes);
        // SAFETY: within the buffer, as just seen.
        unsafe { buffer.start.add(offset).write_bytes(0, len) };
        Ok(())
    }

    fn address(&self, buffer: &Guarded) -> Address {
        buffer.start as Address
    }

    fn with_addresses<R>(
        &self,
        op: &'static str,
        tensors: &[&Tensor],
        f: impl FnOnce(&[Address]) -> Result<R>,
    ) -> Result<R> {
        let upload = |tensor: &&Tensor| with_slice(op, tensor, |x| self.upload(x))?;
        let buffers = tensors.iter().map(upload).collect::<Result<Vec<_>>>()?;
        f(&buffers.iter().map(|buffer| self.address(buffer)).collect::<Vec<_>>())
    }

    fn output(
        &self,
        shape: (usize, usize),
        fill: impl FnOnce(Address) -> Result<()>,
    ) -> Result<Tensor> {
        let mut data = vec![0f32; shape.0 * shape.1];
        let buffer = self.alloc(size_of_val(&data[..]))?;
        fill(self.address(&buffer))?;
        self.read(&buffer, 0, super::args::bytes_of_mut(&mut data))?;
        from_vec(data, shape)
    }

    unsafe fn launch<A: Plain>(&self, launch: Launch, args: &A) -> Result<()> {
        let fail = |why: &str| Error::Unsupported(format!("{}: {why}", launch.kernel));
        if launch.grid.contains(&0) {
            return Ok(());
        }
        launch.check()?;
        let name = CString::new(launch.kernel).expect("kernels are named in letters");
        // SAFETY: a string that ends.
        let kernel = unsafe { (self.find)(name.as_ptr()) }.ok_or_else(|| fail("no such kernel"))?;
        let grid = launch.grid.map(|n| n as u32);
        let mut error = [0 as c_char; 256];
        // SAFETY: the caller answers for the arguments; what they get wrong is caught, mostly.
        let ok = unsafe {
            keepwell_emu_run(
                kernel,
                std::ptr::from_ref(args).cast(),
                grid.as_ptr(),
                launch.threads as u32,
                launch.shared_bytes,
                self.seed,
                error.as_mut_ptr(),
                error.len(),
            )
        };
        // SAFETY: the emulator ends its text.
        let why = unsafe { CStr::from_ptr(error.as_ptr()) };
        if ok { Ok(()) } else { Err(fail(&why.to_string_lossy())) }
    }

    fn float_linear(&self, parts: Vec<RawMatrix>) -> Result<Box<dyn Linear>> {
        float_linear(parts)
    }
}
