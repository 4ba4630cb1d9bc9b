//! A step's index arrays on the device: those of all its layers in one upload, in memory that the next
//! step uses again.

use std::sync::{Arc, Mutex};

use super::{
    args::{Address, AttributionJob, Merge, Plain, WriteSlot, bytes_of},
    attribution,
    gpu::Gpu,
    jobs::{Jobs, Shape, Variant},
    memory,
    scratch::{Growing, lock},
};
use crate::{Arena, AttentionPlan, PageLayout, PageRef, Result, Tier, Write};

/// Some launch's index array: where it starts in the upload, and how many entries it has.
#[derive(Clone, Copy, Debug)]
pub struct Array {
    start: usize,
    pub len: usize,
}

/// What a layer adds to the arrays that all share.
pub struct Layer {
    pub attention: Vec<(&'static Variant, Array)>,
    pub merges: Array,
    pub num_parts: usize,
    pub attribution: Array,
}

/// What the arrays were made from: plan, arena, shape.
struct Source {
    plan: AttentionPlan,
    layout: PageLayout,
    num_pages: usize,
    shape: Shape,
}

/// Where the arrays of one step are.
struct Step {
    source: Source,
    positions: Array,
    pages: Array,
    writes: Array,
    layers: Vec<Layer>,
}

impl Step {
    /// The arrays, and their bytes.
    ///
    /// # Errors
    /// A page or slot that is not in the arena.
    fn new(
        op: &'static str,
        arena: &Arena,
        plan: &AttentionPlan,
        shape: &Shape,
    ) -> Result<(Self, Vec<u8>)> {
        let mut bytes = Vec::new();
        let positions = push(&mut bytes, &plan.positions);
        let pages = push(&mut bytes, &memory::pages(op, arena, &plan.pages)?);
        let writes = push(&mut bytes, &writes(op, arena, &plan.writes)?);
        // Layers whose pages are alike share their merges, which are the most of it.
        let mut last: Option<(Vec<Merge>, Array)> = None;
        let layers = (0..plan.num_layers()).map(|layer| {
            let Jobs { by_variant, merges, num_parts } = Jobs::new(plan, layer, shape);
            let attention =
                by_variant.iter().map(|(v, jobs)| (*v, push(&mut bytes, jobs))).collect();
            let merges = match last.take() {
                Some(known) if known.0 == merges => known,
                _ => (merges.clone(), push(&mut bytes, &merges)),
            };
            let at = last.insert(merges).1;
            let attribution = push(&mut bytes, &attribution_jobs(plan, layer, shape));
            Layer { attention, merges: at, num_parts, attribution }
        });
        let layers = layers.collect();
        let (layout, num_pages) = (*arena.layout(), arena.num_pages());
        let source = Source { plan: plan.clone(), layout, num_pages, shape: *shape };
        Ok((Self { source, positions, pages, writes, layers }, bytes))
    }

    /// Whether these are a layer's arrays of this plan. Layers come one by one, so that only a
    /// layer's part of the plan is looked at.
    fn is_of(&self, arena: &Arena, plan: &AttentionPlan, layer: usize, shape: &Shape) -> bool {
        let Source { plan: known, layout, num_pages, shape: of } = &self.source;
        of == shape
            && layout == arena.layout()
            && *num_pages == arena.num_pages()
            && known.num_kv_heads == plan.num_kv_heads
            && known.window == plan.window
            && known.positions == plan.positions
            && known.spans == plan.spans
            && known.page_starts == plan.page_starts
            && pages_of(known, layer) == pages_of(plan, layer)
            && writes_of(known, layer) == writes_of(plan, layer)
    }
}

/// Appends values where any of them is aligned. What lies between arrays is no page of any arena.
fn push<T: Plain>(bytes: &mut Vec<u8>, values: &[T]) -> Array {
    const ALIGNMENT: usize = 16;
    let start = bytes.len();
    bytes.extend_from_slice(bytes_of(values));
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT) + ALIGNMENT, 0xff);
    Array { start, len: values.len() }
}

fn pages_of(plan: &AttentionPlan, layer: usize) -> Option<&[PageRef]> {
    let num_groups = plan.spans.len() * plan.num_kv_heads;
    let start = |group: usize| plan.page_starts.get(group).map(|&start| start as usize);
    plan.pages.get(start(layer * num_groups)?..start((layer + 1) * num_groups)?)
}

fn writes_of(plan: &AttentionPlan, layer: usize) -> Option<&[Write]> {
    let len = plan.num_kv_heads * plan.num_rows();
    plan.writes.get(layer * len..(layer + 1) * len)
}

fn writes(op: &'static str, arena: &Arena, writes: &[Write]) -> Result<Vec<WriteSlot>> {
    let entry = |&Write { slot, offset }: &Write| {
        memory::check_slot(op, arena, slot, Tier::F16)?;
        Ok(WriteSlot { page: slot.page.0, index: slot.index, offset })
    };
    writes.iter().map(entry).collect()
}

fn attribution_jobs(plan: &AttentionPlan, layer: usize, shape: &Shape) -> Vec<AttributionJob> {
    let mut jobs = Vec::new();
    for (span, of) in plan.spans.iter().enumerate() {
        let Some(scoring) = of.scoring else { continue };
        for kv_head in 0..plan.num_kv_heads {
            let pages = plan.page_range(layer, span, kv_head);
            let lens = plan.pages[pages.clone()].iter().map(|page| usize::from(page.len));
            for range in attribution::runs(lens) {
                let range = pages.start + range.start..pages.start + range.end;
                let group = shape.group;
                jobs.push(attribution::job(&of.rows, scoring, kv_head, group, range));
            }
        }
    }
    jobs
}

/// The arrays of the last step, on a device.
pub struct Steps<G: Gpu> {
    last: Mutex<Last<G>>,
}

struct Last<G: Gpu> {
    memory: Growing<G>,
    step: Option<(Step, Address)>,
}

impl<G: Gpu> Steps<G> {
    pub fn new(gpu: Arc<G>) -> Self {
        Self { last: Mutex::new(Last { memory: Growing::new(gpu), step: None }) }
    }

    /// Calls `f` with the step's arrays, which stay there meanwhile.
    ///
    /// # Errors
    /// A page or slot of the plan is not in the arena; what `f` returns.
    pub fn with<R>(
        &self,
        (op, layer): (&'static str, usize),
        arena: &Arena,
        plan: &AttentionPlan,
        shape: &Shape,
        f: impl FnOnce(&Uploaded) -> Result<R>,
    ) -> Result<R> {
        let Last { memory, step } = &mut *lock(&self.last);
        if !step.as_ref().is_some_and(|(step, _)| step.is_of(arena, plan, layer, shape)) {
            *step = None;
            let (new, bytes) = Step::new(op, arena, plan, shape)?;
            *step = Some((new, memory.write(&bytes)?));
        }
        let (step, address) = step.as_ref().expect("just filled");
        f(&Uploaded { step, start: *address, layer })
    }
}

/// One layer of a step whose arrays are on a device.
pub struct Uploaded<'a> {
    step: &'a Step,
    start: Address,
    layer: usize,
}

impl Uploaded<'_> {
    pub fn address(&self, array: Array) -> Address {
        self.start + array.start as Address
    }

    pub fn positions(&self) -> Address {
        self.address(self.step.positions)
    }

    /// Of all layers: jobs count from the first.
    pub fn pages(&self) -> Address {
        self.address(self.step.pages)
    }

    /// (G, T) of this layer.
    pub fn writes(&self) -> Address {
        let plan = &self.step.source.plan;
        let first = self.layer * plan.num_kv_heads * plan.num_rows();
        self.address(self.step.writes) + (first * size_of::<WriteSlot>()) as Address
    }

    pub fn layer(&self) -> &Layer {
        &self.step.layers[self.layer]
    }
}
