//! score -> price -> compact: what is kept in which tier.

mod policy;

pub use policy::{POLICIES, Policy, PolicyId};
