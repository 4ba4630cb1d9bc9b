//! What a device's launchers refuse: from there on, nobody checks.

mod world;

use candle_core::{DType, Device, Tensor};
use keepwell_kernels::{
    Arena, AttentionPlan, Backend, Move, PageId, PageLayout, PageRef, Result, Rope, RopeTable,
    Slot, Tier, Write, available,
};

use world::{Case, PLAIN, World, copy_to, on};

const CASE: Case = Case { sequences: &[(20, 3)], ..PLAIN };

fn devices() -> impl Iterator<Item = Box<dyn Backend>> {
    available().into_iter().filter(|backend| backend.has_own_memory())
}

#[track_caller]
fn check_refusal<T>(backend: &dyn Backend, result: Result<T>, why: &str) {
    let error = result.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains(why), "{}: `{error}` is not `{why}`", backend.name());
}

fn zeros(backend: &dyn Backend, rows: usize, cols: usize) -> Tensor {
    on(backend, &Tensor::zeros((rows, cols), DType::F32, &Device::Cpu).unwrap())
}

fn write_kv(backend: &dyn Backend, arena: &mut Arena, plan: &AttentionPlan) -> Result<Tensor> {
    let width = (CASE.group + 2) * CASE.num_kv_heads * CASE.head_dim;
    let qkv = zeros(backend, plan.num_rows(), width);
    backend.write_kv(arena, 0, &qkv, &rope(plan), plan)
}

fn rope(plan: &AttentionPlan) -> RopeTable {
    let frequencies = vec![0.0; CASE.head_dim / 2];
    Rope { frequencies, attention_factor: 1.0 }.table(&plan.positions)
}

/// A move within one page.
fn a_move(page: PageId, index: u16) -> Move {
    let slot = |index| Slot { page, index };
    let (from, to) = (slot(index), slot(0));
    Move { from, from_tier: Tier::F16, to, to_tier: Tier::F16, offset: 0 }
}

/// Each slot of the plan's writes in page 0.
fn writes(plan: &AttentionPlan) -> Vec<Write> {
    let write = Write { slot: Slot { page: PageId(0), index: 0 }, offset: 0 };
    vec![write; plan.num_kv_heads * plan.num_rows()]
}

#[test]
fn an_arena_of_another_device_is_refused() {
    const WHY: &str = "the arena lies on another device";
    for backend in devices() {
        let World { mut arena, mut plan, q } = World::new(&CASE);
        let (backend, q) = (&*backend, on(&*backend, &q));
        plan.writes = writes(&plan);
        check_refusal(backend, write_kv(backend, &mut arena, &plan), WHY);
        check_refusal(backend, backend.attention(&arena, 0, &q, &plan), WHY);
        check_refusal(backend, backend.attributions(&arena, &plan.pages), WHY);
        check_refusal(backend, backend.histograms(&arena, &[&plan.pages], &[]), WHY);
        check_refusal(backend, backend.copy_pages(&mut arena, &[(PageId(0), PageId(1))]), WHY);
        check_refusal(backend, backend.compact(&mut arena, &[a_move(PageId(0), 1)]), WHY);
        let own = copy_to(&arena, backend);
        let attended = backend.attention(&own, 0, &q, &plan).unwrap();
        check_refusal(backend, backend.attribute(&mut arena, 0, &q, &attended, &plan), WHY);
    }
}

#[cfg(feature = "cuda-emu")]
#[test]
fn an_arena_of_another_emulator_is_refused() {
    let [first, second, ..] = keepwell_kernels::cuda::Emulator::all().map(|new| new());
    let arena = copy_to(&World::new(&CASE).arena, &first);
    assert!(first.attributions(&arena, &[]).is_ok());
    let read = second.attributions(&arena, &[]);
    check_refusal(&second, read, "the arena lies on another device");
}

#[test]
fn a_tensor_that_is_not_contiguous_is_refused() {
    const WHY: &str = "is not contiguous";
    for backend in devices() {
        let backend = &*backend;
        let World { arena, plan, q } = World::new(&CASE);
        let turned = |rows, cols| zeros(backend, cols, rows).t().unwrap();
        let (x, weight) = (turned(4, 64), zeros(backend, 1, 64));
        check_refusal(backend, backend.rms_norm(&x, &weight, 1e-5), WHY);
        check_refusal(backend, backend.add(&x, &zeros(backend, 4, 64)), WHY);
        check_refusal(backend, backend.silu_mul(&x), WHY);
        let (rows, cols) = q.dims2().unwrap();
        let arena = copy_to(&arena, backend);
        check_refusal(backend, backend.attention(&arena, 0, &turned(rows, cols), &plan), WHY);
    }
}

#[test]
fn pages_and_slots_without_a_place_are_refused() {
    const WHY: &str = "has no place";
    for backend in devices() {
        let backend = &*backend;
        let World { arena, plan, q } = World::new(&CASE);
        let (mut arena, q) = (copy_to(&arena, backend), on(backend, &q));
        let (beyond, capacity) =
            (PageId(arena.num_pages() as u32), arena.layout().capacity(Tier::F16));
        let hostile: [fn(&mut PageRef, PageId, u16); 2] =
            [|page, beyond, _| page.page = beyond, |page, _, capacity| page.len = capacity + 1];
        for change in hostile {
            let mut plan = plan.clone();
            change(&mut plan.pages[0], beyond, capacity as u16);
            check_refusal(backend, backend.attention(&arena, 0, &q, &plan), WHY);
            check_refusal(backend, backend.attributions(&arena, &plan.pages), WHY);
            let counted = backend.histograms(&arena, &[&plan.pages], std::slice::from_ref(&(0..9)));
            check_refusal(backend, counted, WHY);
        }
        for pair in [(beyond, PageId(0)), (PageId(0), beyond)] {
            check_refusal(backend, backend.copy_pages(&mut arena, &[pair]), WHY);
        }
        for pairs in [[(0, 1), (1, 2)], [(0, 2), (1, 2)]] {
            let pairs = pairs.map(|(from, to)| (PageId(from), PageId(to)));
            let copied = backend.copy_pages(&mut arena, &pairs);
            check_refusal(backend, copied, "is read or written besides");
        }
        for slot in [a_move(beyond, 0), a_move(PageId(0), capacity as u16)] {
            check_refusal(backend, backend.compact(&mut arena, &[slot]), WHY);
            let mut plan = plan.clone();
            plan.writes = writes(&plan);
            plan.writes[1].slot = slot.from;
            check_refusal(backend, write_kv(backend, &mut arena, &plan), WHY);
        }
    }
}

#[test]
fn head_sizes_that_kernels_cannot_do_are_refused() {
    for backend in devices() {
        for (dim, is_good) in [(8, true), (12, false), (256, true), (264, false)] {
            let arena = backend.arena(PageLayout::new(dim), 1).unwrap();
            let read = backend.attributions(&arena, &[]);
            match is_good {
                true => assert!(read.is_ok()),
                false => check_refusal(&*backend, read, "is not a multiple of 8 up to 256"),
            }
        }
    }
}
