use crate::{Arena, Attended, AttentionPlan, PageRef, Result, backend::TokenAttribution};
use candle_core::Tensor;
pub fn attribute(
    _arena: &mut Arena,
    _layer: usize,
    _q: &Tensor,
    _attended: &Attended,
    _plan: &AttentionPlan,
) -> Result<()> {
    Err(crate::Error::Unsupported("".into()))
}
pub fn attributions(_arena: &Arena, _pages: &[PageRef]) -> Vec<TokenAttribution> {
    Vec::new()
}
