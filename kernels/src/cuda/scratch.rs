//! Device memory that launches of every step use again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{args::Address, gpu::Gpu};
use crate::Result;

/// A buffer that grows and never shrinks: a step like the one before finds everything where it was.
///
/// That launches which use it are still under way does no harm to who takes it next: everything on a
/// device happens in order.
pub struct Growing<G: Gpu> {
    gpu: Arc<G>,
    known: Option<(G::Buffer, usize)>,
}

impl<G: Gpu> Growing<G> {
    pub fn new(gpu: Arc<G>) -> Self {
        Self { gpu, known: None }
    }

    /// At least `bytes` that hold anything.
    pub fn take(&mut self, bytes: usize) -> Result<&G::Buffer> {
        let keeps = self.gpu.keeps_scratch();
        if !self.known.as_ref().is_some_and(|(_, len)| keeps && *len >= bytes) {
            // The old one is given back first.
            self.known = None;
            let len = if keeps { bytes.next_power_of_two() } else { bytes };
            self.known = Some((self.gpu.alloc(len)?, len));
        }
        Ok(&self.known.as_ref().expect("just filled").0)
    }

    /// `values` from its start on.
    pub fn write(&mut self, values: &[u8]) -> Result<Address> {
        let gpu = self.gpu.clone();
        let buffer = self.take(values.len())?;
        gpu.write(buffer, 0, values)?;
        Ok(gpu.address(buffer))
    }
}

/// A growing buffer whose contents belong to one caller at a time.
pub struct Scratch<G: Gpu> {
    gpu: Arc<G>,
    buffer: Mutex<Growing<G>>,
}

impl<G: Gpu> Scratch<G> {
    pub fn new(gpu: Arc<G>) -> Self {
        Self { buffer: Mutex::new(Growing::new(gpu.clone())), gpu }
    }

    /// Calls `f` with the address of at least `bytes` that hold anything.
    pub fn with<R>(&self, bytes: usize, f: impl FnOnce(Address) -> Result<R>) -> Result<R> {
        let mut buffer = lock(&self.buffer);
        f(self.gpu.address(buffer.take(bytes)?))
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
