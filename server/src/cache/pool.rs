//! The free list.

use keepwell_kernels::PageId;

/// Every page of the arena is either free or live; never both, never neither.
///
/// Pages never used before are only counted: a large arena costs memory as it fills.
#[derive(Debug)]
pub struct PagePool {
    /// Pages from here on were never live.
    num_touched: u32,
    /// Pages that were live once and are free again.
    recycled: Vec<PageId>,
    is_live: Vec<bool>,
}

impl PagePool {
    pub fn new(num_pages: usize) -> Self {
        Self { num_touched: 0, recycled: Vec::new(), is_live: vec![false; num_pages] }
    }

    /// Of the same pages, all of them free.
    pub fn emptied(&self) -> Self {
        let recycled = (0..self.num_touched).rev().map(PageId).collect();
        Self { recycled, is_live: vec![false; self.num_pages()], ..*self }
    }

    pub fn num_pages(&self) -> usize {
        self.is_live.len()
    }

    pub fn num_free(&self) -> usize {
        self.num_pages() - self.num_live()
    }

    pub fn num_live(&self) -> usize {
        self.num_touched as usize - self.recycled.len()
    }

    /// Pages that were ever live.
    pub fn num_touched(&self) -> usize {
        self.num_touched as usize
    }

    pub fn allocate(&mut self) -> Option<PageId> {
        let page = self.recycled.pop().or_else(|| self.touch())?;
        self.is_live[page.0 as usize] = true;
        Some(page)
    }

    fn touch(&mut self) -> Option<PageId> {
        let page = PageId(self.num_touched);
        let exists = (page.0 as usize) < self.num_pages();
        self.num_touched += u32::from(exists);
        exists.then_some(page)
    }

    /// # Panics
    /// When the page is free already: somebody would get it twice.
    pub fn release(&mut self, page: PageId) {
        let is_live = &mut self.is_live[page.0 as usize];
        assert!(*is_live, "{page:?} was released twice");
        *is_live = false;
        self.recycled.push(page);
    }

    /// The count and the map of live pages tell the same story.
    pub fn check(&self) {
        assert_eq!(self.num_live(), self.is_live.iter().filter(|live| **live).count());
        assert!(self.recycled.iter().all(|page| !self.is_live[page.0 as usize]));
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
    fn an_emptied_pool_gives_all_its_pages_those_that_take_memory_first() {
        let mut pool = PagePool::new(3);
        let used = [pool.allocate(), pool.allocate()];
        let mut pool = pool.emptied();
        pool.check();
        assert_eq!((pool.num_free(), pool.num_touched()), (3, 2));
        assert_eq!([pool.allocate(), pool.allocate()], used);
        assert!(pool.allocate().is_some() && pool.allocate().is_none());
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
