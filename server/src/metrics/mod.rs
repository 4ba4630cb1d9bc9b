//! What the server tells Prometheus.
//!
//! Every family is one line of the table in [`table`]: vLLM's name, labels and meaning where vLLM
//! has one, so that its dashboards and routers read ours; `keepwell_*` for what nobody else has.
//! Counters and histograms are there from the start.

pub mod buckets;
pub mod engine;
pub mod latency;
pub mod lifecycle;
pub mod memory;
pub mod parse;
mod process;
mod recorder;
pub mod rejections;
mod series;
pub mod table;

pub use self::process::resident_bytes;
pub use self::recorder::{describe, recorder};
pub use self::table::{FAMILIES, Family, Kind};
