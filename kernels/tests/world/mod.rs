//! Caches filled at random: what the tests and benchmarks of the cache work on.

#![allow(dead_code, reason = "each test and each benchmark uses a part")]

use candle_core::{Device, Tensor};
use keepwell_kernels::{
    Arena, Attended, AttentionPlan, Backend, PageId, PageLayout, PageRef, Span, TIERS, Tier,
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

/// (tokens before this step, tokens of this step) of each sequence.
pub type Sequences = &'static [(usize, usize)];

pub const ALL: &[Tier] = &[
    Tier::F16,
    Tier::K8V8,
    Tier::K5V4,
    Tier::K4V8,
    Tier::K3V5,
    Tier::K2V3,
    Tier::K1V2,
    Tier::K8V1,
];
pub const RAGGED: Sequences = &[(0, 5), (70, 1), (1200, 1), (63, 1), (64, 2), (0, 130), (300, 33)];
pub const PLAIN: Case = Case {
    head_dim: 64,
    num_kv_heads: 2,
    group: 3,
    sequences: &[(0, 1)],
    window: None,
    tiers: &[Tier::F16],
    shuffled: false,
};

#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub head_dim: usize,
    pub num_kv_heads: usize,
    /// Query heads per KV head.
    pub group: usize,
    pub sequences: Sequences,
    pub window: Option<u32>,
    /// Tiers of the pages, in turn.
    pub tiers: &'static [Tier],
    /// Whether the tokens lie in their pages in any order.
    pub shuffled: bool,
}

/// A cache filled at random, and the step that reads it.
pub struct World {
    pub arena: Arena,
    pub plan: AttentionPlan,
    pub q: Tensor,
}

impl World {
    pub fn new(case: &Case) -> Self {
        let mut rng = StdRng::seed_from_u64(7);
        let layout = PageLayout::new(case.head_dim);
        let tokens: usize = case.sequences.iter().map(|(old, new)| old + new).sum();
        let num_pages = case.num_kv_heads * (tokens / 4 + case.sequences.len());
        let mut arena = Arena::host(layout, num_pages).unwrap();
        let mut plan = AttentionPlan {
            num_kv_heads: case.num_kv_heads,
            window: case.window,
            page_starts: vec![0],
            ..Default::default()
        };
        for &(old, new) in case.sequences {
            let start = plan.positions.len();
            plan.positions.extend(old as u32..(old + new) as u32);
            plan.spans.push(Span { rows: start..start + new, scoring: None });
            for _ in 0..case.num_kv_heads {
                let mut positions: Vec<u32> = (0..(old + new) as u32).collect();
                if case.shuffled {
                    positions.shuffle(&mut rng);
                }
                fill(&mut rng, &mut arena, &mut plan.pages, case.tiers, &positions);
                plan.page_starts.push(plan.pages.len() as u32);
            }
        }
        let width = case.num_kv_heads * case.group * case.head_dim;
        let q: Vec<f32> =
            (0..plan.num_rows() * width).map(|_| rng.random_range(-3.0..3.0)).collect();
        let q = Tensor::from_vec(q, (plan.num_rows(), width), &Device::Cpu).unwrap();
        Self { arena, plan, q }
    }

    /// On the host, wherever it was computed.
    pub fn attend(&self, backend: &dyn Backend) -> Attended {
        if !backend.has_own_memory() {
            return backend.attention(&self.arena, 0, &self.q, &self.plan).unwrap();
        }
        let (arena, q) = (copy_to(&self.arena, backend), on(backend, &self.q));
        let Attended { out, lse } = backend.attention(&arena, 0, &q, &self.plan).unwrap();
        Attended { out: on_host(&out), lse: on_host(&lse) }
    }
}

/// The same pages in the backend's memory.
pub fn copy_to(arena: &Arena, backend: &dyn Backend) -> Arena {
    let mut copy = backend.arena(*arena.layout(), arena.num_pages()).unwrap();
    for page in (0..arena.num_pages() as u32).map(PageId) {
        copy.write(page, &arena.read(page).unwrap()).unwrap();
    }
    copy
}

/// The same numbers where the backend computes.
pub fn on(backend: &dyn Backend, x: &Tensor) -> Tensor {
    x.to_device(&backend.device()).unwrap()
}

pub fn on_host(x: &Tensor) -> Tensor {
    x.to_device(&Device::Cpu).unwrap()
}

/// Puts random tokens of these positions into new pages.
fn fill(
    rng: &mut StdRng,
    arena: &mut Arena,
    pages: &mut Vec<PageRef>,
    tiers: &[Tier],
    mut positions: &[u32],
) {
    let layout = *arena.layout();
    for tier in tiers.iter().copied().cycle() {
        let id = PageId(pages.len() as u32);
        let len = layout.capacity(tier).min(positions.len());
        let (here, rest) = positions.split_at(len);
        let base = here.iter().min().copied().unwrap_or(0) + 1;
        let page = PageRef { page: id, base, len: len as u16, tier };
        for (index, &position) in here.iter().enumerate() {
            let offset = page.offset(position);
            write_token(rng, arena.page_mut(id), &layout, tier, index, offset);
        }
        pages.push(page);
        positions = rest;
        if positions.is_empty() {
            return;
        }
    }
}

fn write_token(
    rng: &mut StdRng,
    page: &mut [u8],
    layout: &PageLayout,
    tier: Tier,
    index: usize,
    offset: i16,
) {
    let (info, at) = (&TIERS[tier as usize], layout.arrays(tier));
    let arrays = [
        (info.key, at.keys, at.key_bytes, at.key_scales),
        (info.value, at.values, at.value_bytes, at.value_scales),
    ];
    for (format, codes, bytes, scales) in arrays {
        let x: Vec<f32> = (0..layout.head_dim).map(|_| rng.random_range(-1.0..1.0)).collect();
        let scale = format.encode(&x, &mut page[codes + index * bytes..][..bytes]);
        if format.scale_bytes() > 0 {
            page[scales + index] = scale;
        }
    }
    put(page, at.positions + 2 * index, offset as u16);
    let attribution = half::bf16::from_f32(rng.random_range(0.0..1.0));
    put(page, at.attributions + 2 * index, attribution.to_bits());
}

fn put(page: &mut [u8], at: usize, value: u16) {
    page[at..at + 2].copy_from_slice(&value.to_le_bytes());
}
