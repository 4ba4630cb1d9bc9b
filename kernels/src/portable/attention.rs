use crate::{Arena, Attended, AttentionPlan, Result};
use candle_core::Tensor;
pub fn attention(
    _arena: &Arena,
    _layer: usize,
    _q: &Tensor,
    _plan: &AttentionPlan,
) -> Result<Attended> {
    Err(crate::Error::Unsupported("".into()))
}
