use anyhow::Result;
use candle_core::Tensor;
use keepwell_kernels::{Arena, Attended, Linear};

use super::{Scope, StepContext};
use crate::{ModelConfig, Probed};

/// Grouped-query attention over the paged KV cache.
pub struct Attention {
    qkv: Box<dyn Linear>,
    out: Box<dyn Linear>,
}

impl Attention {
    pub fn load(scope: &Scope, config: &ModelConfig) -> Result<Self> {
        let hidden = config.hidden_size;
        let (heads, kv_heads) = (config.num_heads, config.num_kv_heads);
        let (q_size, kv_size) = (heads * config.head_dim, kv_heads * config.head_dim);
        let name = |part: &str| scope.name(&format!("self_attn.{part}_proj"));
        let q = scope.weights.rotary_matrix(&name("q"), heads, q_size, hidden)?;
        let k = scope.weights.rotary_matrix(&name("k"), kv_heads, kv_size, hidden)?;
        let v = scope.weights.matrix(&name("v"), kv_size, hidden)?;
        let out = scope.weights.matrix(&name("o"), hidden, q_size)?;
        Ok(Self {
            qkv: scope.backend.linear(vec![q, k, v])?,
            out: scope.backend.linear(vec![out])?,
        })
    }

    /// x (T, C), returns (T, H * D), before [`Attention::project`]. Writes the step's K and V to the
    /// cache, and its attributions where the plan asks for them.
    pub fn attend(
        &self,
        arena: &mut Arena,
        layer: usize,
        x: &Tensor,
        step: &StepContext,
    ) -> Result<Tensor> {
        let (backend, plan) = (step.backend, step.plan);
        let qkv = self.qkv.forward(x)?;
        let q = backend.write_kv(arena, layer, &qkv, step.rope, plan)?;
        step.give_back(qkv);
        if let Some(probe) = step.probe {
            probe(layer, Probed::Queries(&q))?;
        }
        let attended = backend.attention(arena, layer, &q, plan)?;
        if plan.spans.iter().any(|span| span.scoring.is_some()) {
            backend.attribute(arena, layer, &q, &attended, plan)?;
        }
        let Attended { out, lse } = attended;
        step.give_back(q);
        step.give_back(lse);
        Ok(out)
    }

    /// attended (T, H * D), returns (T, C).
    pub fn project(&self, attended: &Tensor) -> Result<Tensor> {
        Ok(self.out.forward(attended)?)
    }

    pub fn bytes(&self) -> usize {
        self.qkv.bytes() + self.out.bytes()
    }
}
