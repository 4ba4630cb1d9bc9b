//! Launchers of `kernels/cuda/*.cu`: every shape is checked here, every index array built here. The
//! kernels get addresses and sizes.
//!
//! [`Cuda`] is written over [`Gpu`], so that a real device and the emulator run the same launchers.

mod activation;
mod args;
mod attention;
mod attribution;
mod compact;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "cuda-emu")]
mod emulator;
mod gpu;
#[cfg(any(feature = "cuda", test))]
mod image;
mod jobs;
mod linear;
mod memory;
mod scratch;
mod step;
mod write_kv;

use std::{ops::Range, sync::Arc};

use candle_core::{Device, Tensor};

#[cfg(feature = "cuda")]
pub use driver::Driver;
#[cfg(feature = "cuda-emu")]
pub use emulator::{Broken, Emulator, broken};

use self::{gpu::Gpu, jobs::Shape, memory::Resident, scratch::Scratch, step::Steps};
use crate::{
    Arena, Attended, AttentionPlan, Backend, Histogram, Linear, Move, PageId, PageLayout, PageRef,
    RawMatrix, Result, RopeTable, backend::TokenAttribution,
};

/// Blocks that keep a multiprocessor busy.
const BLOCKS_PER_MULTIPROCESSOR: usize = 4;

/// The kernels on one device.
pub struct Cuda<G: Gpu> {
    gpu: Arc<G>,
    name: &'static str,
    tensor_cores: bool,
    resident: Resident<G>,
    steps: Steps<G>,
    /// Of attention, before they are merged.
    parts: Scratch<G>,
    /// Attention's output as values are cached.
    rotated: Scratch<G>,
    /// Coded, for products.
    activations: Arc<Scratch<G>>,
}

impl<G: Gpu> Cuda<G> {
    pub fn on(gpu: impl Into<Arc<G>>) -> Self {
        let gpu = gpu.into();
        Self {
            name: gpu.name(),
            tensor_cores: true,
            resident: Resident::new(gpu.clone()),
            steps: Steps::new(gpu.clone()),
            parts: Scratch::new(gpu.clone()),
            rotated: Scratch::new(gpu.clone()),
            activations: Arc::new(Scratch::new(gpu.clone())),
            gpu,
        }
    }

    /// The same device under another name, with the plain twins of what uses tensor cores.
    pub fn without_tensor_cores(self, name: &'static str) -> Self {
        Self { name, tensor_cores: false, ..self }
    }

    fn shape(&self, dim: usize, group: usize) -> Shape {
        let max_blocks = self.gpu.num_multiprocessors() * BLOCKS_PER_MULTIPROCESSOR;
        Shape { dim, group, max_blocks, tensor_cores: self.tensor_cores }
    }
}

impl<G: Gpu> Backend for Cuda<G> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn device(&self) -> Device {
        self.gpu.device()
    }

    fn has_own_memory(&self) -> bool {
        true
    }

    fn free_memory(&self) -> Result<Option<u64>> {
        self.gpu.free_memory()
    }

    fn used_memory(&self) -> Result<Option<u64>> {
        self.gpu.used_memory()
    }

    fn arena(&self, layout: PageLayout, num_pages: usize) -> Result<Arena> {
        let bytes = num_pages.saturating_mul(layout.page_bytes);
        let pages = memory::DevicePages::new(self.gpu.clone(), bytes)?;
        Ok(Arena::on_device(layout, num_pages, Box::new(pages)))
    }

    fn linear(&self, parts: Vec<RawMatrix>) -> Result<Box<dyn Linear>> {
        linear::linear(self, parts)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        activation::rms_norm(&*self.gpu, x, weight, eps)
    }

    fn add(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        activation::add(&*self.gpu, x, y)
    }

    fn silu_mul(&self, gate_up: &Tensor) -> Result<Tensor> {
        activation::silu_mul(&*self.gpu, gate_up)
    }

    fn write_kv(
        &self,
        arena: &mut Arena,
        layer: usize,
        qkv: &Tensor,
        rope: &RopeTable,
        plan: &AttentionPlan,
    ) -> Result<Tensor> {
        write_kv::write_kv(self, arena, layer, qkv, (rope, plan))
    }

    fn attention(
        &self,
        arena: &Arena,
        layer: usize,
        q: &Tensor,
        plan: &AttentionPlan,
    ) -> Result<Attended> {
        attention::attention(self, arena, layer, q, plan)
    }

    fn attribute(
        &self,
        arena: &mut Arena,
        layer: usize,
        q: &Tensor,
        attended: &Attended,
        plan: &AttentionPlan,
    ) -> Result<()> {
        attribution::attribute(self, arena, layer, (q, attended), plan)
    }

    fn attributions(&self, arena: &Arena, pages: &[PageRef]) -> Result<Vec<TokenAttribution>> {
        attribution::attributions(self, arena, pages)
    }

    fn histograms(
        &self,
        arena: &Arena,
        groups: &[&[PageRef]],
        ranges: &[Range<u32>],
    ) -> Result<Vec<Histogram>> {
        attribution::histograms(self, arena, groups, ranges)
    }

    fn copy_pages(&self, arena: &mut Arena, pages: &[(PageId, PageId)]) -> Result<()> {
        compact::copy_pages(self, arena, pages)
    }

    fn compact(&self, arena: &mut Arena, moves: &[Move]) -> Result<()> {
        compact::compact(self, arena, moves)
    }
}
