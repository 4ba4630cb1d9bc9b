//! Who holds which page, to the byte. Plain Rust: no tensors, no runtime.

mod ledger;
mod pool;
mod prefix;
mod repack;
mod shared;
mod table;

pub use ledger::{Holdings, Ledger};
pub use pool::PagePool;
pub use prefix::{Contents, NodeId, Place, PrefixIndex, Recipe, Salt};
pub use repack::{Assignment, REACH, Repack};
pub use shared::{Copies, Hit};
pub use table::{HeadPages, PageCopies, PageTable};
