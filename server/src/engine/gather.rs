//! From a step of the scheduler to the model's input.

use keepwell_kernels::{AttentionPlan, Span, Write};

use crate::sched::{Scheduler, Step};

/// The step, flattened into one ragged batch.
pub struct Gathered {
    pub tokens: Vec<u32>,
    /// Rows whose logits are wanted, in the order of the entries that sample.
    pub logit_rows: Vec<usize>,
    pub plan: AttentionPlan,
}

pub fn gather(
    scheduler: &mut Scheduler,
    step: &Step,
    num_layers: usize,
    num_kv_heads: usize,
    window: Option<u32>,
) -> Gathered {
    let mut plan = AttentionPlan { num_kv_heads, window, ..Default::default() };
    let mut tokens = Vec::new();
    let mut logit_rows = Vec::new();
    for entry in &step.entries {
        let seq = scheduler.running_mut(entry.id).expect("scheduled sequences run");
        let end = entry.start + entry.num_tokens;
        let rows = tokens.len()..tokens.len() + entry.num_tokens;
        tokens.extend_from_slice(&seq.tokens[entry.start..end]);
        plan.positions.extend(entry.start as u32..end as u32);
        if entry.samples {
            logit_rows.push(rows.end - 1);
        }
        plan.spans.push(Span { rows, scoring: entry.scoring });
    }
    gather_pages(scheduler, step, num_layers, &mut plan);
    plan.writes = gather_writes(step, num_layers * num_kv_heads);
    Gathered { tokens, logit_rows, plan }
}

/// (layer, span, KV head) order.
fn gather_pages(
    scheduler: &mut Scheduler,
    step: &Step,
    num_layers: usize,
    plan: &mut AttentionPlan,
) {
    let ids: Vec<_> = step.entries.iter().map(|entry| entry.id).collect();
    let tables: Vec<_> = ids
        .iter()
        .filter_map(|id| scheduler.sequences().find(|seq| seq.id == *id))
        .map(|seq| &seq.table)
        .collect();
    plan.page_starts.push(0);
    for layer in 0..num_layers {
        for table in &tables {
            for kv_head in 0..plan.num_kv_heads {
                let head = table.head(layer * plan.num_kv_heads + kv_head);
                plan.pages.extend_from_slice(&head.pages);
                plan.page_starts.push(plan.pages.len() as u32);
            }
        }
    }
}

/// (layer, KV head, row) order.
fn gather_writes(step: &Step, num_heads: usize) -> Vec<Write> {
    let rows = |head: usize| step.entries.iter().flat_map(move |entry| &entry.writes[head]);
    (0..num_heads).flat_map(rows).copied().collect()
}
