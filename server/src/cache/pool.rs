//! The free list.

use keepwell_kernels::PageId;

/// Every page of the arena is either free or taken; never both, never neither.
#[derive(Debug)]
pub struct PagePool {
    free: Vec<PageId>,
    is_free: Vec<bool>,
}

impl PagePool {
    pub fn new(num_pages: usize) -> Self {
        // Low ids first: resident memory grows with the pages in use.
        let free = (0..num_pages as u32).rev().map(PageId).collect();
        Self { free, is_free: vec![true; num_pages] }
    }

    pub fn num_pages(&self) -> usize {
        self.is_free.len()
    }

    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    pub fn num_live(&self) -> usize {
        self.num_pages() - self.num_free()
    }

    pub fn allocate(&mut self) -> Option<PageId> {
        let page = self.free.pop()?;
        self.is_free[page.0 as usize] = false;
        Some(page)
    }

    /// # Panics
    /// When the page is free already: somebody would get it twice.
    pub fn release(&mut self, page: PageId) {
        let is_free = &mut self.is_free[page.0 as usize];
        assert!(!*is_free, "{page:?} was released twice");
        *is_free = true;
        self.free.push(page);
    }

    /// The free list and the map of free pages tell the same story.
    pub fn check(&self) {
        assert_eq!(self.free.len(), self.is_free.iter().filter(|f| **f).count());
        assert!(self.free.iter().all(|page| self.is_free[page.0 as usize]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_pool_gives_none_and_a_released_page_comes_back() {
        let mut pool = PagePool::new(2);
        let (a, b) = (pool.allocate().unwrap(), pool.allocate().unwrap());
        assert_ne!(a, b);
        assert_eq!(pool.allocate(), None);
        pool.release(a);
        assert_eq!(pool.allocate(), Some(a));
        pool.check();
    }

    #[test]
    #[should_panic(expected = "released twice")]
    fn releasing_a_page_twice_is_caught() {
        let mut pool = PagePool::new(1);
        let page = pool.allocate().unwrap();
        pool.release(page);
        pool.release(page);
    }
}
