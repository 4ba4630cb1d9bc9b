//! The KV cache's page format and every operation that touches its memory.
//!
//! Nothing above this crate knows a stride; nothing in it knows what a request is. A [`Backend`]
//! executes one step of a model on one device; [`portable`] is the specification the others are
//! tested against.

#[cfg(target_arch = "aarch64")]
pub mod aarch64;
pub mod arena;
pub mod backend;
pub mod basis;
pub mod codec;
#[cfg(any(feature = "cuda", feature = "cuda-emu"))]
pub mod cuda;
mod error;
pub mod hadamard;
pub mod heap;
pub mod histogram;
pub mod linear;
pub mod matrix;
pub mod minifloat;
pub mod page;
pub mod plan;
pub mod portable;
pub mod rope;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod simd;
pub mod team;
mod tensor;
pub mod wake;
#[cfg(target_arch = "x86_64")]
pub mod x86;

pub use arena::Arena;
pub use backend::{Attended, Backend, Choice, Linear, TokenAttribution, available, keeping, open};
pub use basis::{HeadBasis, KeyBasis};
pub use error::{Error, Result};
pub use histogram::Histogram;
pub use linear::ActivationBits;
pub use matrix::RawMatrix;
pub use page::{PageId, PageLayout, PageRef, PerTier, Slot, TIERS, Tier};
pub use plan::{AttentionPlan, Move, Scoring, Signal, Span, Write};
pub use rope::{Rope, RopeTable};
pub use tensor::give_back;
