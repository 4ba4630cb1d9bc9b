//! Who holds which page, to the byte. Plain Rust: no tensors, no runtime.

mod ledger;
mod pool;
mod repack;
mod table;

pub use ledger::{Holdings, Ledger};
pub use pool::PagePool;
pub use repack::{Assignment, REACH, Repack};
pub use table::{HeadPages, PageTable};
