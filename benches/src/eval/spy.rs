//! A backend that remembers how large queries get, which the balancer of MiKV asks for, and how long
//! scoring takes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use keepwell_kernels::{
    Arena, Attended, AttentionPlan, Backend, Linear, Move, PageLayout, PageRef, RawMatrix, Result,
    RopeTable, backend::TokenAttribution, hadamard,
};

/// Passes every operation on. Queries are looked at where they score the cache.
pub struct Spy {
    inner: Arc<dyn Backend>,
    /// `[layer * G + kv_head][channel]`: largest magnitude over queries and query heads of the group,
    /// in the original channels. `None` while nobody wants to know.
    largest: Mutex<Option<Vec<Vec<f32>>>>,
    scoring: Mutex<Duration>,
}

impl Spy {
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        Self { inner, largest: Mutex::default(), scoring: Mutex::default() }
    }

    pub fn start(&self) {
        *self.largest.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
    }

    /// What was seen since the start, (layers * G, D); empty when nothing was.
    pub fn stop(&self) -> Vec<Vec<f32>> {
        self.largest.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default()
    }

    /// Time spent scoring since this was asked last.
    pub fn take_scoring_time(&self) -> Duration {
        std::mem::take(&mut self.scoring.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn look(&self, layer: usize, q: &Tensor, plan: &AttentionPlan, head_dim: usize) -> Result<()> {
        let mut largest = self.largest.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(largest) = &mut *largest else { return Ok(()) };
        let (_, width) = q.dims2()?;
        let num_kv_heads = plan.num_kv_heads;
        let group = width / head_dim / num_kv_heads;
        let mut q = q.flatten_all()?.to_vec1::<f32>()?;
        if largest.len() < (layer + 1) * num_kv_heads {
            largest.resize((layer + 1) * num_kv_heads, vec![0.0; head_dim]);
        }
        for row in q.chunks_exact_mut(width) {
            for (head, query) in row.chunks_exact_mut(head_dim).enumerate() {
                hadamard::rotate_back(query);
                let largest = &mut largest[layer * num_kv_heads + head / group];
                for (most, x) in largest.iter_mut().zip(query) {
                    *most = most.max(x.abs());
                }
            }
        }
        Ok(())
    }
}

impl Backend for Spy {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn device(&self) -> Device {
        self.inner.device()
    }

    fn arena(&self, layout: PageLayout, num_pages: usize) -> Result<Arena> {
        self.inner.arena(layout, num_pages)
    }

    fn linear(&self, parts: Vec<RawMatrix>) -> Result<Box<dyn Linear>> {
        self.inner.linear(parts)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        self.inner.rms_norm(x, weight, eps)
    }

    fn silu_mul(&self, gate_up: &Tensor) -> Result<Tensor> {
        self.inner.silu_mul(gate_up)
    }

    fn write_kv(
        &self,
        arena: &mut Arena,
        layer: usize,
        qkv: &Tensor,
        rope: &RopeTable,
        plan: &AttentionPlan,
    ) -> Result<Tensor> {
        self.inner.write_kv(arena, layer, qkv, rope, plan)
    }

    fn attention(
        &self,
        arena: &Arena,
        layer: usize,
        q: &Tensor,
        plan: &AttentionPlan,
    ) -> Result<Attended> {
        self.inner.attention(arena, layer, q, plan)
    }

    fn attribute(
        &self,
        arena: &mut Arena,
        layer: usize,
        q: &Tensor,
        attended: &Attended,
        plan: &AttentionPlan,
    ) -> Result<()> {
        self.look(layer, q, plan, arena.layout().head_dim)?;
        let started = Instant::now();
        self.inner.attribute(arena, layer, q, attended, plan)?;
        *self.scoring.lock().unwrap_or_else(PoisonError::into_inner) += started.elapsed();
        Ok(())
    }

    fn attributions(&self, arena: &Arena, pages: &[PageRef]) -> Result<Vec<TokenAttribution>> {
        self.inner.attributions(arena, pages)
    }

    fn compact(&self, arena: &mut Arena, moves: &[Move]) -> Result<()> {
        self.inner.compact(arena, moves)
    }
}
