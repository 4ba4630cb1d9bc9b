//! The parts of a decoder. They call a backend's kernels and know no strides.

mod attention;
mod decoder;
mod mlp;
mod norm;

use keepwell_kernels::{AttentionPlan, Backend, RopeTable};

pub use attention::Attention;
pub use decoder::Decoder;
pub use mlp::Mlp;
pub use norm::RmsNorm;

/// What all layers of one step share.
pub struct StepContext<'a> {
    pub backend: &'a dyn Backend,
    pub rope: &'a RopeTable,
    pub plan: &'a AttentionPlan,
    pub probe: Option<&'a crate::Probe<'a>>,
}

/// The weights of one layer, or of the model: a source and a name prefix.
pub struct Scope<'a> {
    pub weights: &'a crate::weights::Weights,
    pub backend: &'a dyn Backend,
    pub prefix: String,
}

impl Scope<'_> {
    pub fn name(&self, part: &str) -> String {
        format!("{}{part}.weight", self.prefix)
    }
}
