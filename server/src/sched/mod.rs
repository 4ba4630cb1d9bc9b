//! Which sequences run in a step, with how many tokens each. Plain Rust: no tensors, no runtime.

mod chunks;
mod demand;
mod fairness;
mod scheduler;
mod sequence;
pub mod sharing;

pub use chunks::Chunks;
pub use demand::{Demand, MAX_TIERS_HELD};
pub use fairness::UserId;
pub use scheduler::{Entry, FAIR_ANSWER, Pressure, Scheduler, SchedulerLimits, Step};
pub use sequence::{EVENT_INTERVAL, Reserve, SeqId, Sequence};
pub use sharing::{Purity, Sharing};
