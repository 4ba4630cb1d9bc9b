//! The portable cache kernels against f64 references.

use std::ops::Range;

use candle_core::{Device, Tensor};
use keepwell_kernels::{
    Arena, AttentionPlan, Backend, Move, PageId, PageLayout, PageRef, PerTier, Rope, RopeTable,
    Scoring, Signal, Slot, Span, TIERS, Tier, Write,
    codec::Format,
    hadamard::rotate,
    portable::{Portable, segment::Segment},
};
use rand::{Rng, SeedableRng, rngs::StdRng};

const NUM_HEADS: usize = 6;
const NUM_KV_HEADS: usize = 2;

/// One sequence of one layer in an arena, its tokens written in one step.
struct World {
    arena: Arena,
    plan: AttentionPlan,
    /// (T, H, D) as the caller sees it: not rotated.
    q: Vec<f32>,
    /// (T, G, D)
    k: Vec<f32>,
    v: Vec<f32>,
    q_rotated: Tensor,
}

fn no_rope(num_rows: usize, half_dim: usize) -> RopeTable {
    let rope = Rope { frequencies: vec![0.0; half_dim], attention_factor: 1.0 };
    rope.table(&vec![0; num_rows])
}

fn random(rng: &mut StdRng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(-2f32..2.0)).collect()
}

impl World {
    fn new(seed: u64, num_tokens: usize, head_dim: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let layout = PageLayout::new(head_dim);
        let mut arena =
            Arena::host(layout, NUM_KV_HEADS * (2 * num_tokens.div_ceil(8) + TIERS.len())).unwrap();
        let mut plan = plan(num_tokens, &layout);
        let q = random(&mut rng, num_tokens * NUM_HEADS * head_dim);
        let k = random(&mut rng, num_tokens * NUM_KV_HEADS * head_dim);
        let v = random(&mut rng, num_tokens * NUM_KV_HEADS * head_dim);
        let row = |x: &[f32], heads: usize, t: usize| {
            x[t * heads * head_dim..(t + 1) * heads * head_dim].to_vec()
        };
        let qkv: Vec<f32> = (0..num_tokens)
            .flat_map(|t| {
                [row(&q, NUM_HEADS, t), row(&k, NUM_KV_HEADS, t), row(&v, NUM_KV_HEADS, t)].concat()
            })
            .collect();
        let width = (NUM_HEADS + 2 * NUM_KV_HEADS) * head_dim;
        let qkv = Tensor::from_vec(qkv, (num_tokens, width), &Device::Cpu).unwrap();
        let rope = no_rope(num_tokens, head_dim / 2);
        let q_rotated = Portable.write_kv(&mut arena, 0, &qkv, &rope, &plan).unwrap();
        plan.window = None;
        Self { arena, plan, q, k, v, q_rotated }
    }

    fn head_dim(&self) -> usize {
        self.arena.layout().head_dim
    }

    fn num_tokens(&self) -> usize {
        self.plan.num_rows()
    }

    /// Moves every token of every head into fresh pages, the tier by the token's index.
    fn scatter_over_tiers(&mut self) {
        let layout = *self.arena.layout();
        let mut next_page = self.plan.pages.iter().map(|p| p.page.0).max().unwrap() + 1;
        let (mut pages, mut starts, mut moves) = (Vec::new(), vec![0], Vec::new());
        for kv_head in 0..NUM_KV_HEADS {
            let old = self.plan.pages(0, 0, kv_head).to_vec();
            let mut new: Vec<PageRef> = Vec::new();
            for position in 0..self.num_tokens() as u32 {
                let tier = TIERS[position as usize % TIERS.len()].tier;
                let from = old[position as usize / 8];
                let is_open =
                    |p: &&mut PageRef| p.tier == tier && usize::from(p.len) < layout.capacity(tier);
                if new.iter_mut().find(is_open).is_none() {
                    // A base far from the first position: offsets may be negative.
                    new.push(PageRef { page: PageId(next_page), base: position + 3, len: 0, tier });
                    next_page += 1;
                }
                let page = new.iter_mut().find(is_open).unwrap();
                moves.push(Move {
                    from: Slot { page: from.page, index: (position % 8) as u16 },
                    from_tier: Tier::F16,
                    to: Slot { page: page.page, index: page.len },
                    to_tier: tier,
                    offset: page.offset(position),
                });
                page.len += 1;
            }
            pages.extend(new);
            starts.push(pages.len() as u32);
        }
        Portable.compact(&mut self.arena, &moves).unwrap();
        (self.plan.pages, self.plan.page_starts) = (pages, starts);
    }

    fn segment(&self, kv_head: usize) -> Segment {
        Segment::decode(&self.arena, self.plan.pages(0, 0, kv_head))
    }

    /// Rotated query, (D).
    fn query(&self, row: usize, head: usize) -> Vec<f32> {
        let at = (row * NUM_HEADS + head) * self.head_dim();
        let mut query = self.q[at..at + self.head_dim()].to_vec();
        rotate(&mut query);
        query
    }

    /// f64 attention of a row over the decoded tokens that `keep` lets through: (o, probabilities
    /// by token, lse), rotated.
    fn reference(
        &self,
        row: usize,
        head: usize,
        keep: impl Fn(usize) -> bool,
    ) -> (Vec<f64>, Vec<f64>, f64) {
        let segment = self.segment(head / (NUM_HEADS / NUM_KV_HEADS));
        let query = self.query(row, head);
        let visible = self.plan.visible(self.plan.positions[row]);
        let score = |token: usize| {
            let dot = |a: &[f32], b: &[f32]| {
                a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
            };
            let seen = visible.contains(&segment.positions[token]) && keep(token);
            let scale = (self.head_dim() as f64).sqrt();
            if seen { (dot(&query, segment.key(token)) / scale).exp() } else { 0.0 }
        };
        let weights: Vec<f64> = (0..segment.len()).map(score).collect();
        let sum: f64 = weights.iter().sum();
        let p: Vec<f64> = weights.iter().map(|w| w / sum).collect();
        let out = (0..self.head_dim())
            .map(|c| p.iter().enumerate().map(|(t, p)| p * f64::from(segment.value(t)[c])).sum())
            .collect();
        (out, p, sum.ln())
    }

    fn check_attention(&self) {
        let attended = Portable.attention(&self.arena, 0, &self.q_rotated, &self.plan).unwrap();
        let (out, lse) = (attended.out.to_vec2::<f32>().unwrap(), attended.lse.to_vec2().unwrap());
        for row in 0..self.num_tokens() {
            for head in 0..NUM_HEADS {
                let (expected, _, expected_lse) = self.reference(row, head, |_| true);
                let mut o = out[row][head * self.head_dim()..(head + 1) * self.head_dim()].to_vec();
                rotate(&mut o);
                let lse: f32 = lse[row][head];
                assert!((f64::from(lse) - expected_lse).abs() < 1e-4);
                let worst = o.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs());
                assert!(worst.fold(0.0, f64::max) < 1e-4, "row {row}, head {head}");
            }
        }
    }
}

/// Every token in F16 pages of 8, positions in order, bases at the page's first position.
fn plan(num_tokens: usize, layout: &PageLayout) -> AttentionPlan {
    let capacity = layout.capacity(Tier::F16);
    let pages_per_head = num_tokens.div_ceil(capacity);
    let page = |kv_head: usize, i: usize| PageRef {
        page: PageId((kv_head * pages_per_head + i) as u32),
        base: (i * capacity) as u32,
        len: capacity.min(num_tokens - i * capacity) as u16,
        tier: Tier::F16,
    };
    let write = |kv_head: usize, t: usize| Write {
        slot: Slot { page: page(kv_head, t / capacity).page, index: (t % capacity) as u16 },
        offset: (t % capacity) as i16,
    };
    let heads = 0..NUM_KV_HEADS;
    AttentionPlan {
        num_kv_heads: NUM_KV_HEADS,
        positions: (0..num_tokens as u32).collect(),
        spans: vec![Span { rows: 0..num_tokens, scoring: None }],
        pages: heads.clone().flat_map(|h| (0..pages_per_head).map(move |i| page(h, i))).collect(),
        page_starts: (0..=NUM_KV_HEADS).map(|h| (h * pages_per_head) as u32).collect(),
        writes: heads.flat_map(|h| (0..num_tokens).map(move |t| write(h, t))).collect(),
        window: None,
        basis: None,
    }
}

const SHAPES: [(usize, usize); 4] = [(1, 64), (7, 16), (50, 64), (90, 128)];

#[test]
fn attention_over_f16_pages_equals_dense_attention() {
    for (seed, (num_tokens, head_dim)) in SHAPES.into_iter().enumerate() {
        World::new(seed as u64, num_tokens, head_dim).check_attention();
    }
}

#[test]
fn attention_over_mixed_tiers_equals_dense_attention_over_the_dequantized_tokens() {
    for (seed, (num_tokens, head_dim)) in SHAPES.into_iter().enumerate() {
        let mut world = World::new(seed as u64, num_tokens, head_dim);
        world.scatter_over_tiers();
        world.check_attention();
        world.plan.window = Some(11);
        world.check_attention();
    }
}

#[test]
fn the_rotation_changes_neither_scores_nor_outputs() {
    let world = World::new(9, 20, 64);
    let attended = Portable.attention(&world.arena, 0, &world.q_rotated, &world.plan).unwrap();
    let out = attended.out.to_vec2::<f32>().unwrap();
    // The first row sees one token: its output is that token's value, as it was before rotation.
    let error = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 4e-3);
    assert!(error(&out[0][..64], &world.v[..64]));
    assert!(error(&out[0][5 * 64..], &world.v[64..128]));
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let key = world.segment(0).key(3).to_vec();
    let plain = dot(&world.q[..64], &world.k[3 * 2 * 64..][..64]);
    assert!((dot(&world.query(0, 0), &key) - plain).abs() < 0.05);
}

#[test]
fn a_token_moved_between_tiers_keeps_position_and_attribution_and_loses_only_its_formats_error() {
    let mut world = World::new(4, 200, 64);
    let attributions = signals(&mut world, Signal::AttentionMass, 3, 1.0);
    let before = world.segment(1);
    world.scatter_over_tiers();
    let after = world.segment(1);
    for token in Portable.attributions(&world.arena, world.plan.pages(0, 0, 1)).unwrap() {
        assert_eq!(token.attribution, attributions[1][token.position as usize]);
    }
    let mut errors = PerTier::<(f32, f32)>::default();
    for token in 0..after.len() {
        let position = after.positions[token] as usize;
        let nmse = |a: &[f32], b: &[f32]| {
            a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>()
                / a.iter().map(|a| a * a).sum::<f32>()
        };
        let tier = TIERS[position % TIERS.len()].tier;
        errors[tier].0 += nmse(before.key(position), after.key(token));
        errors[tier].1 += nmse(before.value(position), after.value(token));
    }
    for (tier, error) in errors.iter() {
        let tokens = (0..200).filter(|p| p % TIERS.len() == tier as usize).count() as f32;
        let bounds = (expected_error(tier.info().key), expected_error(tier.info().value));
        let within = error.0 < bounds.0 * tokens && error.1 < bounds.1 * tokens;
        assert!(within, "{tier:?}: {error:?} of {tokens} tokens, {bounds:?} each");
    }
    let mut positions = after.positions.clone();
    positions.sort_unstable();
    assert_eq!(positions, (0..200).collect::<Vec<_>>());
}

/// Of uniform channels, rotated, half as much again as Lloyd-Max levels of a normal variable leave.
fn expected_error(format: Format) -> f32 {
    const LEVELS: [f32; 7] = [1.0, 0.3634, 0.1175, 0.0345, 0.0095, 0.0025, 0.000_8];
    match format {
        Format::F16 => 1e-6,
        Format::Int8 => 2e-4,
        Format::Levels(bits) => {
            bits.iter().map(|b| LEVELS[usize::from(*b)]).sum::<f32>() / 8.0 * 1.5
        }
    }
}

fn signals(world: &mut World, signal: Signal, rows: usize, decay: f32) -> Vec<Vec<f32>> {
    world.plan.spans[0].scoring = Some(Scoring { rows, signal, decay });
    let attended = Portable.attention(&world.arena, 0, &world.q_rotated, &world.plan).unwrap();
    Portable.attribute(&mut world.arena, 0, &world.q_rotated, &attended, &world.plan).unwrap();
    let read = |kv_head| Portable.attributions(&world.arena, world.plan.pages(0, 0, kv_head));
    (0..NUM_KV_HEADS).map(|h| read(h).unwrap().iter().map(|t| t.attribution).collect()).collect()
}

fn scored_queries(num_rows: usize, rows: usize, kv_head: usize) -> (Range<usize>, Range<usize>) {
    (num_rows - rows..num_rows, kv_head * 3..(kv_head + 1) * 3)
}

fn assert_close(actual: &[f32], expected: &[f64]) {
    for (token, (a, e)) in actual.iter().zip(expected).enumerate() {
        // bf16 keeps 8 bits and rounds up or down.
        assert!((f64::from(*a) - e).abs() <= 8e-3 * e.abs() + 1e-9, "token {token}: {a} {e}");
    }
}

#[test]
fn the_deletion_signal_equals_brute_force_deletion_of_each_token() {
    let mut world = World::new(6, 40, 64);
    world.scatter_over_tiers();
    let actual = signals(&mut world, Signal::Deletion, 5, 1.0);
    for (kv_head, actual) in actual.iter().enumerate() {
        let (rows, heads) = scored_queries(40, 5, kv_head);
        let mut expected = vec![0f64; 40];
        for (row, head) in rows.flat_map(|r| heads.clone().map(move |h| (r, h))) {
            let (with, p, _) = world.reference(row, head, |_| true);
            for (deleted, total) in expected.iter_mut().enumerate().filter(|(t, _)| p[*t] > 0.0) {
                let (without, ..) = world.reference(row, head, |token| token != deleted);
                *total += with.iter().zip(&without).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
            }
        }
        assert_close(actual, &expected);
    }
}

#[test]
fn attention_mass_sums_probabilities_and_decays_what_was_there() {
    let mut world = World::new(7, 30, 32);
    let first = signals(&mut world, Signal::AttentionMass, 4, 1.0);
    for (kv_head, first) in first.iter().enumerate() {
        let (rows, heads) = scored_queries(30, 4, kv_head);
        let mut expected = vec![0f64; 30];
        for (row, head) in rows.flat_map(|r| heads.clone().map(move |h| (r, h))) {
            let (_, p, _) = world.reference(row, head, |_| true);
            expected.iter_mut().zip(p).for_each(|(total, p)| *total += p);
        }
        assert_close(first, &expected);
    }
    let second = signals(&mut world, Signal::AttentionMass, 4, 0.5);
    for (first, second) in first.iter().flatten().zip(second.iter().flatten()) {
        assert!((1.5 * first - second).abs() <= 0.02 * first);
    }
}

#[test]
fn the_key_norm_signal_is_the_inverse_norm() {
    let mut world = World::new(8, 10, 64);
    let actual = signals(&mut world, Signal::KeyNorm, 1, 0.0);
    let segment = world.segment(1);
    for (token, a) in actual[1].iter().enumerate() {
        let norm = segment.key(token).iter().map(|k| k * k).sum::<f32>().sqrt();
        assert!((a * norm - 1.0).abs() < 8e-3);
    }
}

#[test]
fn a_query_that_sees_one_token_gives_a_finite_attribution() {
    let mut world = World::new(10, 1, 64);
    let actual = signals(&mut world, Signal::Deletion, 1, 1.0);
    assert!(actual.iter().flatten().all(|a| a.is_finite()));
}

#[test]
fn moves_within_one_call_read_before_they_write() {
    let mut world = World::new(11, 8, 64);
    let before = world.segment(0);
    let page = world.plan.pages(0, 0, 0)[0];
    let rotate_slots = |i: u16| Move {
        from: Slot { page: page.page, index: i },
        from_tier: Tier::F16,
        to: Slot { page: page.page, index: (i + 1) % 8 },
        to_tier: Tier::F16,
        offset: i as i16,
    };
    let moves: Vec<_> = (0..8).map(rotate_slots).collect();
    Portable.compact(&mut world.arena, &moves).unwrap();
    let after = world.segment(0);
    for i in 0..8 {
        assert_eq!(before.key(i), after.key((i + 1) % 8));
        assert_eq!(after.positions[(i + 1) % 8], i as u32);
    }
}
