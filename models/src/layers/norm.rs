use anyhow::Result;
use candle_core::Tensor;
use keepwell_kernels::Backend;

use super::Scope;

/// x / sqrt(mean(x^2) + eps) * weight.
pub struct RmsNorm {
    /// (C)
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    pub fn load(scope: &Scope, name: &str, width: usize, eps: f32) -> Result<Self> {
        let weight = scope.weights.vector(&scope.name(name), width)?;
        Ok(Self { weight: Tensor::from_vec(weight, width, &scope.backend.device())?, eps })
    }

    /// x (T, C), returns (T, C).
    pub fn forward(&self, backend: &dyn Backend, x: &Tensor) -> Result<Tensor> {
        Ok(backend.rms_norm(x, &self.weight, self.eps)?)
    }

    pub fn bytes(&self) -> usize {
        self.weight.elem_count() * size_of::<f32>()
    }
}
