//! Which sequences run in a step, with how many tokens each. Plain Rust: no tensors, no runtime.

mod demand;
mod scheduler;
mod sequence;

pub use demand::{Demand, MAX_TIERS_HELD};
pub use scheduler::{Entry, Scheduler, SchedulerLimits, Step};
pub use sequence::{EVENT_INTERVAL, SeqId, Sequence};
