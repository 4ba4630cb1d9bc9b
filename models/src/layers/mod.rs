//! The parts of a decoder. They call a backend's kernels and know no strides.

mod attention;
mod decoder;
mod mlp;
mod norm;

use candle_core::Tensor;
use keepwell_kernels::{AttentionPlan, Backend, RopeTable, give_back};

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
    /// Whether somebody else may hold the step's tensors: who began it with states, or the probe.
    pub is_watched: bool,
}

impl StepContext<'_> {
    /// x + y, which the step needs no more.
    pub fn add(&self, x: Tensor, y: Tensor) -> anyhow::Result<Tensor> {
        let sum = self.backend.add(&x, &y)?;
        self.give_back(x);
        self.give_back(y);
        Ok(sum)
    }

    /// What the step needs no more becomes a later result.
    pub fn give_back(&self, x: Tensor) {
        if !self.is_watched {
            give_back(x);
        }
    }
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
