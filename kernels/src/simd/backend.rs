//! The backend of an instruction set: what its vectors and its products make of a step.

use candle_core::Tensor;

use super::{
    Simd, activation,
    attention::{attention, attribution::attribute},
    compact::compact,
    write_kv::write_kv,
};
use crate::{
    ActivationBits, Arena, Attended, AttentionPlan, Backend, Linear, Move, RawMatrix, Result,
    RopeTable,
    linear::{self, Kernel},
};

impl<S: Simd + Kernel> Backend for S {
    fn name(&self) -> &'static str {
        S::NAME
    }

    fn with_activations(&self, bits: ActivationBits) -> Option<Box<dyn Backend>> {
        Some(Box::new(Kernel::with_activations(*self, bits)))
    }

    fn linear(&self, parts: Vec<RawMatrix>) -> Result<Box<dyn Linear>> {
        linear::linear(*self, parts)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        activation::rms_norm(*self, x, weight, eps)
    }

    fn silu_mul(&self, gate_up: &Tensor) -> Result<Tensor> {
        activation::silu_mul(*self, gate_up)
    }

    fn write_kv(
        &self,
        arena: &mut Arena,
        layer: usize,
        qkv: &Tensor,
        rope: &RopeTable,
        plan: &AttentionPlan,
    ) -> Result<Tensor> {
        write_kv(*self, arena, layer, qkv, rope, plan)
    }

    fn attention(
        &self,
        arena: &Arena,
        layer: usize,
        q: &Tensor,
        plan: &AttentionPlan,
    ) -> Result<Attended> {
        attention(*self, arena, layer, q, plan)
    }

    fn attribute(
        &self,
        arena: &mut Arena,
        layer: usize,
        q: &Tensor,
        attended: &Attended,
        plan: &AttentionPlan,
    ) -> Result<()> {
        attribute(*self, arena, layer, q, attended, plan)
    }

    fn compact(&self, arena: &mut Arena, moves: &[Move]) -> Result<()> {
        compact(*self, arena, moves);
        Ok(())
    }
}
