//! Which tokens matter: one trait, one table.

/// Stub until the policies land.
pub trait Policy: Sync {
    fn name(&self) -> &'static str;
}

struct Stub(&'static str);

impl Policy for Stub {
    fn name(&self) -> &'static str {
        self.0
    }
}

pub static POLICIES: &[&dyn Policy] = &[
    &Stub("attribution"),
    &Stub("attention_mass"),
    &Stub("recency"),
    &Stub("key_norm"),
    &Stub("random"),
];

/// Index into [`POLICIES`]; only names in the table have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyId(usize);

impl PolicyId {
    pub fn from_name(name: &str) -> Option<Self> {
        POLICIES.iter().position(|p| p.name() == name).map(Self)
    }

    pub fn policy(self) -> &'static dyn Policy {
        POLICIES[self.0]
    }
}
