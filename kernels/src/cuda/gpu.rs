//! What a device must do for the launchers: memory, tensors, launches.

use candle_core::{Device, Tensor};

use super::args::{Address, Plain, bytes_of};
use crate::{Error, Linear, RawMatrix, Result};

/// A grid of blocks of threads for one kernel of `kernels/cuda`.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    pub kernel: &'static str,
    pub grid: [usize; 2],
    /// Of a block: a multiple of 32.
    pub threads: usize,
    /// Of a block: at most 48 KiB.
    pub shared_bytes: usize,
}

/// Blocks of a grid in x and y, as CUDA has them.
const MOST_BLOCKS: [usize; 2] = [i32::MAX as usize, u16::MAX as usize];

impl Launch {
    /// # Errors
    /// More blocks than a grid has.
    pub fn check(&self) -> Result<()> {
        let [x, y] = self.grid;
        match x > MOST_BLOCKS[0] || y > MOST_BLOCKS[1] {
            true => Err(Error::shape(self.kernel, format!("a grid of {x} x {y} blocks"))),
            false => Ok(()),
        }
    }
}

/// A device that runs the kernels: a real one, or the emulator. Everything happens in order, as on
/// one stream.
pub trait Gpu: Send + Sync + 'static {
    /// Device memory, freed when dropped and all launches before are done.
    type Buffer: Send + Sync + 'static;

    fn name(&self) -> &'static str;

    /// Where its tensors live.
    fn device(&self) -> Device;

    fn num_multiprocessors(&self) -> usize;

    /// Bytes that can still be had, if it has memory of its own.
    fn free_memory(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Bytes that are taken, by whomever, if it has memory of its own.
    fn used_memory(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Whether scratch memory that is large enough is used again. An emulator rather takes memory
    /// that ends where the data do, to see who reads on.
    fn keeps_scratch(&self) -> bool {
        true
    }

    /// Memory that holds anything.
    fn alloc(&self, bytes: usize) -> Result<Self::Buffer>;

    fn read(&self, from: &Self::Buffer, offset: usize, into: &mut [u8]) -> Result<()>;

    fn write(&self, to: &Self::Buffer, offset: usize, from: &[u8]) -> Result<()>;

    /// Copies `len` bytes of a buffer to a place in it that they do not overlap.
    fn copy(&self, buffer: &Self::Buffer, from: usize, to: usize, len: usize) -> Result<()>;

    /// Sets `len` bytes to 0.
    fn clear(&self, buffer: &Self::Buffer, offset: usize, len: usize) -> Result<()>;

    fn address(&self, buffer: &Self::Buffer) -> Address;

    /// Calls `f` with the addresses of contiguous f32 tensors, which stay there meanwhile.
    fn with_addresses<R>(
        &self,
        op: &'static str,
        tensors: &[&Tensor],
        f: impl FnOnce(&[Address]) -> Result<R>,
    ) -> Result<R>;

    /// A new f32 tensor, which `fill` is told the address of.
    fn output(
        &self,
        shape: (usize, usize),
        fill: impl FnOnce(Address) -> Result<()>,
    ) -> Result<Tensor>;

    /// Runs a kernel; on an empty grid, nothing.
    ///
    /// # Safety
    /// `args` is what the kernel takes, and what it reads and writes lies in buffers and tensors
    /// that live until the launch was made.
    unsafe fn launch<A: Plain>(&self, launch: Launch, args: &A) -> Result<()>;

    /// Products with float weights: checked parts of one format.
    fn float_linear(&self, parts: Vec<RawMatrix>) -> Result<Box<dyn Linear>>;

    fn upload<T: Plain>(&self, values: &[T]) -> Result<Self::Buffer> {
        let bytes = bytes_of(values);
        let buffer = self.alloc(bytes.len())?;
        self.write(&buffer, 0, bytes)?;
        Ok(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_of_more_blocks_than_a_device_has_is_refused_by_the_kernels_name() {
        let launch = |grid| Launch { kernel: "add", grid, threads: 32, shared_bytes: 0 };
        assert!(launch([2_147_483_647, 65_535]).check().is_ok());
        for grid in [[2_147_483_648, 1], [1, 65_536]] {
            let error = launch(grid).check().unwrap_err().to_string();
            assert!(error.starts_with("add: a grid of "), "{error}");
        }
    }
}
