use crate::{Arena, AttentionPlan, Result, RopeTable};
use candle_core::Tensor;
pub fn write_kv(
    _arena: &mut Arena,
    _layer: usize,
    _qkv: &Tensor,
    _rope: &RopeTable,
    _plan: &AttentionPlan,
) -> Result<Tensor> {
    Err(crate::Error::Unsupported("".into()))
}
