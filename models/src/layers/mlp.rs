use anyhow::Result;
use candle_core::Tensor;
use keepwell_kernels::Linear;

use super::{Scope, StepContext};
use crate::ModelConfig;

/// The gated feed-forward network: down(silu(gate(x)) * up(x)).
pub struct Mlp {
    gate_up: Box<dyn Linear>,
    down: Box<dyn Linear>,
}

impl Mlp {
    pub fn load(scope: &Scope, config: &ModelConfig) -> Result<Self> {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let gate = scope.weights.matrix(&scope.name("mlp.gate_proj"), wide, hidden)?;
        let up = scope.weights.matrix(&scope.name("mlp.up_proj"), wide, hidden)?;
        let down = scope.weights.matrix(&scope.name("mlp.down_proj"), hidden, wide)?;
        Ok(Self {
            gate_up: scope.backend.linear(vec![gate, up])?,
            down: scope.backend.linear(vec![down])?,
        })
    }

    /// x (T, C), returns (T, C).
    pub fn forward(&self, step: &StepContext, x: &Tensor) -> Result<Tensor> {
        let gate_up = self.gate_up.forward(x)?;
        let gated = step.backend.silu_mul(&gate_up)?;
        step.give_back(gate_up);
        let out = self.down.forward(&gated)?;
        step.give_back(gated);
        Ok(out)
    }

    pub fn bytes(&self) -> usize {
        self.gate_up.bytes() + self.down.bytes()
    }
}
