//! The page memory: one allocation, made once, never exceeded.

use std::{any::Any, borrow::Cow, fmt::Debug};

use memmap2::MmapMut;

use crate::{
    Error, Result,
    page::{PageId, PageLayout, Tier},
};

/// `num_pages` pages of equal size. On a host the memory is zeroed lazily by the operating system,
/// so resident memory grows with the pages in use, by a huge page of the system at a time where it has them.
#[derive(Debug)]
pub struct Arena {
    layout: PageLayout,
    num_pages: usize,
    memory: Memory,
}

#[derive(Debug)]
enum Memory {
    Host(MmapMut),
    Device(Box<dyn DeviceMemory>),
}

/// Memory that only a device's kernels see; the host copies to and from it. Everything happens in
/// order, and only a read waits for it.
pub trait DeviceMemory: Debug + Send + Sync {
    /// # Errors
    /// The device fails.
    fn read(&self, offset: usize, into: &mut [u8]) -> Result<()>;

    /// # Errors
    /// The device fails.
    fn write(&mut self, offset: usize, from: &[u8]) -> Result<()>;

    /// Copies `len` bytes to a place that they do not overlap.
    ///
    /// # Errors
    /// The device fails.
    fn copy(&mut self, from: usize, to: usize, len: usize) -> Result<()>;

    /// Sets `len` bytes to 0.
    ///
    /// # Errors
    /// The device fails.
    fn clear(&mut self, offset: usize, len: usize) -> Result<()>;

    /// For the backend to find its own.
    fn as_any(&self) -> &dyn Any;
}

impl Arena {
    /// # Errors
    /// The system does not have the memory, or not in one piece.
    pub fn host(layout: PageLayout, num_pages: usize) -> Result<Self> {
        let len = num_pages.saturating_mul(layout.page_bytes);
        let host = MmapMut::map_anon(len).map_err(|error| {
            Error::Unsupported(format!(
                "cannot take {len} bytes of memory for the KV cache: {error}"
            ))
        })?;
        // A head's pages lie far apart: with small pages of the system each needs an entry of its own of the
        // translation tables, hundreds of cycles away. A system without huge ones refuses, and works.
        #[cfg(target_os = "linux")]
        let _ = host.advise(memmap2::Advice::HugePage);
        Ok(Self { layout, num_pages, memory: Memory::Host(host) })
    }

    /// Pages in a device's memory, which has room for all of them.
    pub fn on_device(layout: PageLayout, num_pages: usize, memory: Box<dyn DeviceMemory>) -> Self {
        Self { layout, num_pages, memory: Memory::Device(memory) }
    }

    pub fn layout(&self) -> &PageLayout {
        &self.layout
    }

    pub fn num_pages(&self) -> usize {
        self.num_pages
    }

    /// The device's memory, unless it is the host's.
    pub fn device(&self) -> Option<&dyn DeviceMemory> {
        match &self.memory {
            Memory::Host(_) => None,
            Memory::Device(memory) => Some(&**memory),
        }
    }

    /// # Panics
    /// The memory is a device's; [`Arena::read`] and [`Arena::write`] copy.
    pub fn page(&self, id: PageId) -> &[u8] {
        let start = self.start(id);
        match &self.memory {
            Memory::Host(host) => &host[start..start + self.layout.page_bytes],
            Memory::Device(memory) => panic!("a page of {memory:?} on the host"),
        }
    }

    /// # Panics
    /// As [`Arena::page`].
    pub fn page_mut(&mut self, id: PageId) -> &mut [u8] {
        let start = self.start(id);
        match &mut self.memory {
            Memory::Host(host) => &mut host[start..start + self.layout.page_bytes],
            Memory::Device(memory) => panic!("a page of {memory:?} on the host"),
        }
    }

    /// A page, copied if it lies on a device.
    ///
    /// # Errors
    /// The device fails.
    pub fn read(&self, id: PageId) -> Result<Cow<'_, [u8]>> {
        let Memory::Device(memory) = &self.memory else { return Ok(Cow::Borrowed(self.page(id))) };
        let mut page = vec![0; self.layout.page_bytes];
        memory.read(self.start(id), &mut page)?;
        Ok(Cow::Owned(page))
    }

    /// Overwrites a page.
    ///
    /// # Errors
    /// The device fails.
    pub fn write(&mut self, id: PageId, page: &[u8]) -> Result<()> {
        assert!((id.0 as usize) < self.num_pages && page.len() == self.layout.page_bytes);
        let start = self.start(id);
        match &mut self.memory {
            Memory::Host(_) => self.page_mut(id).copy_from_slice(page),
            Memory::Device(memory) => memory.write(start, page)?,
        }
        Ok(())
    }

    /// Overwrites page `to` with page `from`.
    ///
    /// # Errors
    /// The device fails.
    pub fn copy(&mut self, from: PageId, to: PageId) -> Result<()> {
        assert!(from.0.max(to.0) < self.num_pages as u32, "{from:?} or {to:?} is not there");
        let (from, to, len) = (self.start(from), self.start(to), self.layout.page_bytes);
        match &mut self.memory {
            _ if from == to => {}
            Memory::Host(host) => host.copy_within(from..from + len, to),
            Memory::Device(memory) => memory.copy(from, to, len)?,
        }
        Ok(())
    }

    /// Sets the attributions of an F16 page to 0.
    ///
    /// # Errors
    /// The device fails.
    pub fn clear_attributions(&mut self, id: PageId) -> Result<()> {
        assert!((id.0 as usize) < self.num_pages, "{id:?} is not there");
        let arrays = *self.layout.arrays(Tier::F16);
        let (start, len) = (self.start(id) + arrays.attributions, arrays.capacity * 2);
        match &mut self.memory {
            Memory::Host(host) => host[start..start + len].fill(0),
            Memory::Device(memory) => memory.clear(start, len)?,
        }
        Ok(())
    }

    fn start(&self, id: PageId) -> usize {
        id.0 as usize * self.layout.page_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_the_page_and_loses_its_attributions_alone() {
        let layout = PageLayout::new(64);
        let mut arena = Arena::host(layout, 3).unwrap();
        let bytes: Vec<u8> = (0..layout.page_bytes).map(|i| i as u8 | 1).collect();
        arena.write(PageId(0), &bytes).unwrap();
        arena.copy(PageId(0), PageId(2)).unwrap();
        assert_eq!(arena.page(PageId(2)), bytes);
        arena.clear_attributions(PageId(2)).unwrap();
        let start = layout.arrays(Tier::F16).attributions;
        let (kept, cleared) = arena.page(PageId(2)).split_at(start);
        assert_eq!(kept, &bytes[..start]);
        assert_eq!(cleared[..16], [0; 16]);
        assert_eq!(arena.page(PageId(1)), vec![0; layout.page_bytes]);
    }
}
