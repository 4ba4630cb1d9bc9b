//! From a step of the scheduler to the model's input.

use keepwell_kernels::{AttentionPlan, Span, Write};
use keepwell_models::ModelConfig;

use crate::sched::{Entry, Sequence};

/// The step, flattened into one ragged batch.
pub struct Gathered {
    pub tokens: Vec<u32>,
    /// Rows whose logits are wanted, in the order of the entries that sample.
    pub logit_rows: Vec<usize>,
    pub plan: AttentionPlan,
}

/// The entries of a step with their sequences.
pub type Parts<'a> = [(&'a Entry, &'a Sequence)];

/// `num_logits` gives the number of an entry's last rows whose logits are wanted.
pub fn gather(
    parts: &Parts,
    config: &ModelConfig,
    num_logits: impl Fn(&Entry) -> usize,
) -> Gathered {
    let (num_kv_heads, window) = (config.num_kv_heads, config.sliding_window);
    let mut plan = AttentionPlan { num_kv_heads, window, ..Default::default() };
    let mut tokens = Vec::new();
    let mut logit_rows = Vec::new();
    for (entry, seq) in parts {
        let end = entry.start + entry.num_tokens;
        let rows = tokens.len()..tokens.len() + entry.num_tokens;
        tokens.extend_from_slice(&seq.tokens[entry.start..end]);
        plan.positions.extend(entry.start as u32..end as u32);
        logit_rows.extend(rows.end - num_logits(entry)..rows.end);
        plan.spans.push(Span { rows, scoring: entry.scoring });
    }
    gather_pages(parts, config.num_layers, &mut plan);
    plan.writes = gather_writes(parts, config.num_layers * num_kv_heads);
    Gathered { tokens, logit_rows, plan }
}

/// (layer, span, KV head) order.
fn gather_pages(parts: &Parts, num_layers: usize, plan: &mut AttentionPlan) {
    let num_heads = num_layers * plan.num_kv_heads;
    let num_pages =
        |seq: &Sequence| (0..num_heads).map(|head| seq.table.head(head).pages.len()).sum::<usize>();
    plan.pages.reserve(parts.iter().map(|(_, seq)| num_pages(seq)).sum());
    plan.page_starts.reserve(parts.len() * num_heads + 1);
    plan.page_starts.push(0);
    for layer in 0..num_layers {
        for (_, seq) in parts {
            for kv_head in 0..plan.num_kv_heads {
                let head = seq.table.head(layer * plan.num_kv_heads + kv_head);
                plan.pages.extend_from_slice(&head.pages);
                plan.page_starts.push(plan.pages.len() as u32);
            }
        }
    }
}

/// (layer, KV head, row) order.
fn gather_writes(parts: &Parts, num_heads: usize) -> Vec<Write> {
    let rows = |head: usize| parts.iter().flat_map(move |(entry, _)| &entry.writes[head]);
    (0..num_heads).flat_map(rows).copied().collect()
}
