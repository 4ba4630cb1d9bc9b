//! A device's kernels, one at a time: microseconds a launch; the bytes that the head of its file counts
//! over the time, and what share that is of what `add` moves, the way STREAM measures a memory; and
//! arithmetic over the time. Plain kernels and those on tensor cores are two rungs of a ladder.
//!
//! `cargo bench -p keepwell-kernels --features cuda --bench device [words that a line has to contain]`
//!
//! With `--features cuda-emu` the emulator runs small cases, to see that this works; its times mean
//! nothing.

#[path = "../tests/world/mod.rs"]
mod world;

use std::time::Instant;

use candle_core::{DType, Device, Tensor, quantized::GgmlDType};
use keepwell_kernels::{
    Arena, Backend, Linear, Move, PageId, RawMatrix, Rope, Scoring, Signal, Slot, TIERS, Tier,
    Write, available,
};
use world::{Case, PLAIN, Sequences, World, copy_to, on, on_host};

/// What is measured, and how often.
struct Sizes {
    calls: u32,
    /// Floats of each operand of `add`: more than any cache holds.
    stream: usize,
    head_dim: usize,
    num_kv_heads: usize,
    decode: Sequences,
    prefill: Sequences,
    /// (rows of x, out, in)
    products: &'static [(usize, usize, usize)],
    /// Rows, of hidden states and of one half of the feed-forward network's.
    states: (usize, usize, usize),
    /// (tokens, out, in)
    embedding: (usize, usize, usize),
}

/// A layer of an 8B model with 8 KV heads, 16 sequences decoding at depth 4096.
const CARD: Sizes = Sizes {
    calls: 20,
    stream: 128 << 20,
    head_dim: 128,
    num_kv_heads: 8,
    decode: &[(4096, 1); 16],
    prefill: &[(3584, 512)],
    products: &[(1, 28_672, 4096), (16, 28_672, 4096), (512, 28_672, 4096)],
    states: (512, 4096, 14_336),
    embedding: (512, 128_256, 4096),
};
const EMULATOR: Sizes = Sizes {
    calls: 1,
    stream: 1 << 12,
    head_dim: 32,
    num_kv_heads: 1,
    decode: &[(64, 1)],
    prefill: &[(16, 16)],
    products: &[(1, 32, 64), (16, 32, 64)],
    states: (3, 64, 96),
    embedding: (3, 40, 64),
};

/// A device, and what its memory gives.
struct Ladder {
    backend: Box<dyn Backend>,
    sizes: Sizes,
    /// Bytes per second.
    bandwidth: f64,
}

fn main() {
    for backend in available().into_iter().filter(|backend| backend.has_own_memory()) {
        let sizes = if backend.name().starts_with("cuda-emu") { EMULATOR } else { CARD };
        let ladder = Ladder { bandwidth: 0.0, backend, sizes }.on_memory();
        ladder.states();
        TIERS.iter().for_each(|info| ladder.cache(std::slice::from_ref(&info.tier)));
        ladder.sizes.products.iter().for_each(|&shape| {
            ladder.product(shape, GgmlDType::Q4_1, "q4_1");
            ladder.product(shape, GgmlDType::Q8_0, "q8_0");
        });
        ladder.embedding(GgmlDType::Q4_1, "q4_1");
        ladder.embedding(GgmlDType::Q8_0, "q8_0");
    }
}

fn is_wanted(title: &str) -> bool {
    std::env::args().skip(1).all(|arg| arg == "--bench" || title.contains(&arg))
}

impl Ladder {
    /// Measures what `add` moves.
    fn on_memory(self) -> Self {
        let [x, y] = [(); 2].map(|()| self.tensor(self.sizes.stream / 1024, 1024));
        let seconds = self.time(|| drop(self.backend.add(&x, &y).expect("one shape")));
        let bandwidth = (3 * 4 * self.sizes.stream) as f64 / seconds;
        println!("{:14} add: {:.0} GB/s", self.backend.name(), bandwidth / 1e9);
        Self { bandwidth, ..self }
    }

    fn tensor(&self, rows: usize, cols: usize) -> Tensor {
        on(&*self.backend, &Tensor::ones((rows, cols), DType::F32, &Device::Cpu).expect("memory"))
    }

    fn states(&self) {
        let (rows, hidden, wide) = self.sizes.states;
        let backend = &*self.backend;
        let (x, weight) = (self.tensor(rows, hidden), self.tensor(1, hidden));
        let norm = || drop(backend.rms_norm(&x, &weight, 1e-5).expect("shapes"));
        self.measure(&format!("rms_norm {rows} x {hidden}"), 8 * rows * hidden + 4 * hidden, norm);
        let gate_up = self.tensor(rows, 2 * wide);
        let gate = || drop(backend.silu_mul(&gate_up).expect("two halves"));
        self.measure(&format!("silu_mul {rows} x {wide}"), 12 * rows * wide, gate);
    }

    /// Rows of a matrix as floats.
    fn embedding(&self, dtype: GgmlDType, name: &str) {
        let (num_ids, rows, cols) = self.sizes.embedding;
        let linear = self.matrix((rows, cols), dtype);
        // Far from each other, as tokens are.
        let ids: Vec<u32> = (0..num_ids).map(|i| (i * 7919 % rows) as u32).collect();
        let bytes = num_ids * (4 * cols + linear.bytes() / rows);
        let look_up = || drop(linear.rows(&ids).expect("rows of the matrix"));
        self.measure(&format!("rows     {num_ids} of {rows} x {cols} {name}"), bytes, look_up);
    }

    fn matrix(&self, (rows, cols): (usize, usize), dtype: GgmlDType) -> Box<dyn Linear> {
        let data = vec![1; rows * cols / dtype.block_size() * dtype.type_size()];
        let raw = RawMatrix { dtype, rows, cols, data };
        self.backend.linear(vec![raw]).expect("a matrix")
    }

    fn cache(&self, tiers: &'static [Tier]) {
        let Sizes { head_dim, num_kv_heads, decode, prefill, .. } = self.sizes;
        for (name, sequences) in [("decode", decode), ("prefill", prefill)] {
            let title = format!("{:14} {name:8} {:6}", self.backend.name(), tiers[0].info().name);
            if is_wanted(&title) {
                let case = Case { head_dim, num_kv_heads, group: 4, sequences, tiers, ..PLAIN };
                self.world(&title, &case);
            }
        }
    }

    /// Attention, attribution, a move of every token to the tier it has, the reading of what tokens
    /// weigh; and the write of the step's own tokens, which are in F16.
    fn world(&self, title: &str, case: &Case) {
        let mut world = World::new(case);
        for span in &mut world.plan.spans {
            span.scoring = Some(Scoring { rows: 16, signal: Signal::Deletion, decay: 0.9 });
        }
        let backend = &*self.backend;
        let (mut arena, q) = (copy_to(&world.arena, backend), on(backend, &world.q));
        let (plan, layout) = (&world.plan, *arena.layout());
        let bytes: usize =
            plan.pages.iter().map(|p| usize::from(p.len) * layout.token_bytes(p.tier)).sum();
        let seen: usize = plan.positions.iter().map(|&position| position as usize + 1).sum();
        let flops = 4 * seen * case.num_kv_heads * case.group * case.head_dim;
        let attended = backend.attention(&arena, 0, &q, plan).expect("shapes");
        let attend = || drop(backend.attention(&arena, 0, &q, plan).expect("shapes"));
        self.report(&format!("{title} attention"), bytes, flops, self.time(attend));
        let attribute = || backend.attribute(&mut arena, 0, &q, &attended, plan).expect("shapes");
        self.report(&format!("{title} attribution"), bytes, 0, self.time(attribute));
        let moves = moves(&world);
        let compact = || backend.compact(&mut arena, &moves).expect("slots in the arena");
        self.report(&format!("{title} compact"), 2 * bytes, 0, self.time(compact));
        let num_pages = arena.num_pages() as u32;
        let pages: Vec<_> =
            (0..num_pages / 2).map(|i| (PageId(i), PageId(num_pages - 1 - i))).collect();
        let copied = 2 * pages.len() * layout.page_bytes;
        let copy = || backend.copy_pages(&mut arena, &pages).expect("pages of the arena");
        self.report(&format!("{title} copy_pages"), copied, 0, self.time(copy));
        let tokens: usize = plan.pages.iter().map(|page| usize::from(page.len)).sum();
        // With the way of 8 bytes a token to the host.
        let read = || drop(backend.attributions(&arena, &plan.pages).expect("pages"));
        self.report(&format!("{title} read_tokens"), 12 * tokens, 0, self.time(read));
        let all = 0..u32::MAX;
        let count = || drop(backend.histograms(&arena, &[&plan.pages], std::slice::from_ref(&all)));
        self.report(&format!("{title} histogram"), 4 * tokens, 0, self.time(count));
        if case.tiers == [Tier::F16] {
            self.write(title, &world, &mut arena);
        }
    }

    fn write(&self, title: &str, world: &World, arena: &mut Arena) {
        let (mut plan, dim) = (world.plan.clone(), arena.layout().head_dim);
        plan.writes = writes(world);
        let frequencies = vec![0.5; dim / 2];
        let rope = Rope { frequencies, attention_factor: 1.0 }.table(&plan.positions);
        let (num_rows, q_width) = world.q.dims2().expect("(T, H * D)");
        let width = q_width + 2 * plan.num_kv_heads * dim;
        let qkv = self.tensor(num_rows, width);
        let write =
            || drop(self.backend.write_kv(arena, 0, &qkv, &rope, &plan).expect("slots of pages"));
        let bytes = num_rows * (4 * (width + q_width) + plan.num_kv_heads * (4 * dim + 4));
        self.report(&format!("{title} write_kv"), bytes, 0, self.time(write));
    }

    fn product(&self, (num_rows, rows, cols): (usize, usize, usize), dtype: GgmlDType, name: &str) {
        let title =
            format!("{:14} product  {num_rows} x {rows} x {cols} {name}", self.backend.name());
        if !is_wanted(&title) {
            return;
        }
        let linear = self.matrix((rows, cols), dtype);
        let x = self.tensor(num_rows, cols);
        let seconds = self.time(|| drop(linear.forward(&x).expect("shapes")));
        self.report(&title, linear.bytes(), 2 * num_rows * rows * cols, seconds);
    }

    /// Seconds a call, the fastest of some rounds.
    fn time(&self, mut call: impl FnMut()) -> f64 {
        // Reading from the device ends when all before is done.
        let last = self.tensor(1, 1);
        let wait = || drop(on_host(&last));
        let mut round = || {
            wait();
            let start = Instant::now();
            (0..self.sizes.calls).for_each(|_| call());
            wait();
            start.elapsed().as_secs_f64() / f64::from(self.sizes.calls)
        };
        (0..5).map(|_| round()).fold(f64::INFINITY, f64::min)
    }

    /// Times what does hardly any arithmetic.
    fn measure(&self, what: &str, bytes: usize, call: impl FnMut()) {
        let title = format!("{:14} {what}", self.backend.name());
        if is_wanted(&title) {
            self.report(&title, bytes, 0, self.time(call));
        }
    }

    fn report(&self, title: &str, bytes: usize, flops: usize, seconds: f64) {
        let rate = bytes as f64 / seconds;
        let share = 100.0 * rate / self.bandwidth;
        let arithmetic = match flops {
            0 => String::new(),
            _ => format!("{:9.1} GFLOP/s", flops as f64 / seconds / 1e9),
        };
        println!(
            "{title:52} {:10.1} us {:8.1} GB/s {share:5.1} % {arithmetic}",
            seconds * 1e6,
            rate / 1e9
        );
    }
}

/// Every token changes places with its neighbour's.
fn moves(world: &World) -> Vec<Move> {
    let slot = |page, index| Slot { page, index };
    let of_page = |page: &keepwell_kernels::PageRef| {
        let (id, tier, len): (_, Tier, u16) = (page.page, page.tier, page.len);
        (0..len).map(move |index| Move {
            from: slot(id, index),
            from_tier: tier,
            to: slot(id, (index + 1) % len),
            to_tier: tier,
            offset: 0,
        })
    };
    world.plan.pages.iter().flat_map(of_page).collect()
}

/// Where each row's token lies already, by KV head and row.
fn writes(world: &World) -> Vec<Write> {
    let capacity = world.arena.layout().capacity(Tier::F16);
    let plan = &world.plan;
    let of_span = |kv_head: usize, span: usize| {
        let pages = plan.pages(0, span, kv_head);
        plan.positions[plan.spans[span].rows.clone()].iter().map(move |&position| {
            let page = pages[position as usize / capacity];
            let index = (position as usize % capacity) as u16;
            Write { slot: Slot { page: page.page, index }, offset: page.offset(position) }
        })
    };
    let of_head = |kv_head| (0..plan.spans.len()).flat_map(move |span| of_span(kv_head, span));
    (0..plan.num_kv_heads).flat_map(of_head).collect()
}
