//! The page memory: one allocation, made once, never exceeded.

use memmap2::MmapMut;

use crate::{
    Error, Result,
    page::{PageId, PageLayout},
};

/// `num_pages` pages of equal size. On a host the memory is zeroed lazily by the operating system,
/// so resident memory grows with the pages in use.
#[derive(Debug)]
pub struct Arena {
    layout: PageLayout,
    num_pages: usize,
    host: MmapMut,
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
        Ok(Self { layout, num_pages, host })
    }

    pub fn layout(&self) -> &PageLayout {
        &self.layout
    }

    pub fn num_pages(&self) -> usize {
        self.num_pages
    }

    pub fn page(&self, id: PageId) -> &[u8] {
        let start = id.0 as usize * self.layout.page_bytes;
        &self.host[start..start + self.layout.page_bytes]
    }

    pub fn page_mut(&mut self, id: PageId) -> &mut [u8] {
        let start = id.0 as usize * self.layout.page_bytes;
        &mut self.host[start..start + self.layout.page_bytes]
    }
}
