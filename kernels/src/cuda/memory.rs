//! What stays on the device between launches: the arena, the tables.

use std::{
    any::Any,
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
};

use super::{
    args::{self, Address, Cache, MAX_DIM, bytes_of},
    gpu::Gpu,
    scratch::{Growing, lock},
};
use crate::{
    Arena, Error, KeyBasis, PageLayout, PageRef, Result, RopeTable,
    arena::DeviceMemory,
    page::{Slot, Tier},
};

/// The page memory on a device.
pub struct DevicePages<G: Gpu> {
    gpu: Arc<G>,
    buffer: G::Buffer,
}

impl<G: Gpu> DevicePages<G> {
    /// `bytes` zeros.
    pub fn new(gpu: Arc<G>, bytes: usize) -> Result<Self> {
        let buffer = gpu.alloc(bytes)?;
        gpu.clear(&buffer, 0, bytes)?;
        Ok(Self { gpu, buffer })
    }
}

impl<G: Gpu> fmt::Debug for DevicePages<G> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "DevicePages({})", self.gpu.name())
    }
}

impl<G: Gpu> DeviceMemory for DevicePages<G> {
    fn read(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        self.gpu.read(&self.buffer, offset, into)
    }

    fn write(&mut self, offset: usize, from: &[u8]) -> Result<()> {
        self.gpu.write(&self.buffer, offset, from)
    }

    fn copy(&mut self, from: usize, to: usize, len: usize) -> Result<()> {
        self.gpu.copy(&self.buffer, from, to, len)
    }

    fn clear(&mut self, offset: usize, len: usize) -> Result<()> {
        self.gpu.clear(&self.buffer, offset, len)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A key basis on the device.
pub struct DeviceBasis<G: Gpu> {
    of: Arc<KeyBasis>,
    means: G::Buffer,
    keys: G::Buffer,
    queries: G::Buffer,
}

/// Addresses of means, columns of F and of F^-T, from one (layer, KV head) on.
pub type BasisAddresses = [Address; 3];

/// Tables, uploaded anew only when they change.
pub struct Resident<G: Gpu> {
    gpu: Arc<G>,
    tables: Mutex<HashMap<usize, Arc<[G::Buffer; 2]>>>,
    basis: Mutex<Option<Arc<DeviceBasis<G>>>>,
    rope: Mutex<Rope<G>>,
}

/// The rotations of the last step: cos, then sin.
struct Rope<G: Gpu> {
    memory: Growing<G>,
    numbers: Vec<f32>,
    address: Address,
}

impl<G: Gpu> Resident<G> {
    pub fn new(gpu: Arc<G>) -> Self {
        let (tables, basis) = Default::default();
        let memory = Growing::new(gpu.clone());
        let rope = Mutex::new(Rope { memory, numbers: vec![], address: 0 });
        Self { gpu, tables, basis, rope }
    }

    /// The arena as the kernels see it.
    ///
    /// # Errors
    /// It belongs to another device, or its head size is one the kernels cannot do.
    pub fn cache(&self, op: &'static str, arena: &Arena) -> Result<Cache> {
        let layout = *arena.layout();
        check_dim(op, layout.head_dim)?;
        let pages =
            arena.device().and_then(|memory| memory.as_any().downcast_ref::<DevicePages<G>>());
        let pages = match pages {
            Some(pages) if Arc::ptr_eq(&pages.gpu, &self.gpu) => Ok(pages),
            _ => Err(Error::shape(op, "the arena lies on another device")),
        }?;
        let [tiers, levels] = &*self.tables(&layout)?;
        Ok(Cache {
            arena: self.gpu.address(&pages.buffer),
            tiers: self.gpu.address(tiers),
            levels: self.gpu.address(levels),
            page_bytes: layout.page_bytes as u32,
            head_dim: layout.head_dim as u32,
        })
    }

    fn tables(&self, layout: &PageLayout) -> Result<Arc<[G::Buffer; 2]>> {
        let mut tables = lock(&self.tables);
        if let Some(known) = tables.get(&layout.head_dim) {
            return Ok(known.clone());
        }
        let new = [self.gpu.upload(&args::tiers(layout))?, self.gpu.upload(args::levels())?];
        Ok(tables.entry(layout.head_dim).or_insert(Arc::new(new)).clone())
    }

    /// Calls `f` with the addresses of cos and sin; a step's layers share them.
    pub fn with_rope<R>(
        &self,
        rope: &RopeTable,
        f: impl FnOnce([Address; 2]) -> Result<R>,
    ) -> Result<R> {
        let Rope { memory, numbers, address } = &mut *lock(&self.rope);
        let (cos, sin) = (&rope.cos, &rope.sin);
        if numbers.len() != cos.len() + sin.len()
            || numbers[..cos.len()] != cos[..]
            || numbers[cos.len()..] != sin[..]
        {
            let new = [&cos[..], sin].concat();
            numbers.clear(); // in case the next line fails
            *address = memory.write(bytes_of(&new))?;
            *numbers = new;
        }
        f([*address, *address + size_of_val(&cos[..]) as Address])
    }

    /// The basis, from `head` on. It lives until another one is asked for.
    pub fn basis(&self, basis: &Arc<KeyBasis>, head: usize) -> Result<BasisAddresses> {
        let mut known = lock(&self.basis);
        let basis = match &*known {
            Some(known) if Arc::ptr_eq(&known.of, basis) => known.clone(),
            _ => Arc::new(DeviceBasis {
                of: basis.clone(),
                means: self.gpu.upload(basis.means())?,
                keys: self.gpu.upload(basis.keys())?,
                queries: self.gpu.upload(basis.queries())?,
            }),
        };
        *known = Some(basis.clone());
        let dim = basis.of.head_dim();
        let at = |buffer: &G::Buffer, len: usize| {
            self.gpu.address(buffer) + (head * len * size_of::<f32>()) as Address
        };
        Ok([at(&basis.means, dim), at(&basis.keys, dim * dim), at(&basis.queries, dim * dim)])
    }
}

/// # Errors
/// A head size that is no multiple of 8, or too large.
fn check_dim(op: &'static str, dim: usize) -> Result<()> {
    if dim == 0 || !dim.is_multiple_of(8) || dim > MAX_DIM {
        let reason = format!("head size {dim} is not a multiple of 8 up to {MAX_DIM}");
        return Err(Error::shape(op, reason));
    }
    Ok(())
}

/// Pages as the kernels see them.
///
/// # Errors
/// A page that is not in the arena, or holds more than it can.
pub fn pages(op: &'static str, arena: &Arena, pages: &[PageRef]) -> Result<Vec<args::Page>> {
    let of = |page: &PageRef| {
        let fits = page.page.0 as usize <= arena.num_pages().wrapping_sub(1)
            && usize::from(page.len) <= arena.layout().capacity(page.tier);
        let PageRef { page: id, base, len, tier } = *page;
        let entry = args::Page { page: id.0, base, len, tier: tier as u8, unused: 0 };
        fits.then_some(entry).ok_or_else(|| Error::shape(op, format!("{page:?} has no place")))
    };
    pages.iter().map(of).collect()
}

/// # Errors
/// A slot that is not in the arena.
pub fn check_slot(op: &'static str, arena: &Arena, slot: Slot, tier: Tier) -> Result<()> {
    let fits = (slot.page.0 as usize) < arena.num_pages()
        && usize::from(slot.index) < arena.layout().capacity(tier);
    if fits { Ok(()) } else { Err(Error::shape(op, format!("{slot:?} has no place"))) }
}
