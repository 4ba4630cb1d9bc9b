//! score -> price -> compact: what is kept in which tier.
//!
//! Kernels accumulate a signal per cached token; a [`Policy`] turns it into a score; [`price`]
//! turns scores and a number of pages into tiers; [`crate::cache::Repack`] turns tiers into moves.

mod evicted;
mod plan;
mod policies;
mod policy;
mod price;
mod score;
mod spans;
mod squeeze;

pub use evicted::Evicted;
pub use plan::{COARSEST_PROTECTED, Decision, Goal, HeadTokens, Protection, decide, repack};
pub use policy::{POLICIES, Policy, PolicyId, Queries, TokenSignals};
pub use price::{
    Candidate, HeadPrices, MAX_TIERS, Prices, REFUSED, assign, assign_at_price, normal_error,
};
pub use score::refine;
pub use spans::Spans;
pub use squeeze::{Curve, HeadHistograms, Shares, share_out};
