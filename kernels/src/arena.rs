//! The page memory: one allocation, made once, never exceeded.

use crate::page::{PageId, PageLayout};

/// `num_pages` pages of equal size. On a host the memory is zeroed lazily by the operating system,
/// so resident memory grows with the pages in use.
#[derive(Debug)]
pub struct Arena {
    layout: PageLayout,
    num_pages: usize,
    host: Vec<u8>,
}

impl Arena {
    pub fn host(layout: PageLayout, num_pages: usize) -> Self {
        Self { layout, num_pages, host: vec![0; num_pages * layout.page_bytes] }
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
