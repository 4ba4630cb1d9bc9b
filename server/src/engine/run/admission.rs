//! What a request becomes, if it may.

use super::Engine;
use crate::{
    cache::PageTable,
    engine::{EngineError, GenerateRequest, KvCacheParams},
    sched::{SeqId, Sequence},
};

/// Tokens that an answer without a limit of its own should have room for.
const FAIR_ANSWER: usize = 256;

impl Engine {
    /// Admission: refuses what no waiting would help.
    pub(super) fn sequence(&mut self, request: &GenerateRequest) -> Result<Sequence, EngineError> {
        if !self.scheduler.can_queue(request.prompt.len()) {
            let num_waiting = self.scheduler.num_waiting();
            let num_tokens = self.scheduler.num_waiting_tokens();
            return Err(EngineError::QueueFull { num_waiting, num_tokens });
        }
        let (budget, max_tokens) = self.grant(request)?;
        self.next_id += 1;
        Ok(Sequence {
            id: SeqId(self.next_id),
            tokens: request.prompt.clone(),
            prompt_len: request.prompt.len(),
            max_len: request.prompt.len() + max_tokens,
            budget,
            policy: request.kv_cache.policy,
            priority: request.priority,
            table: PageTable::new(self.scheduler.demand().num_heads),
            since_event: 0,
            num_preemptions: 0,
        })
    }

    /// The budget and the number of tokens that memory can hold in the end, were the request alone.
    /// One that does not fit at its budget is squeezed down to its own floor; one whose caller named
    /// no limit is shortened before that, as long as a fair answer is left.
    fn grant(&self, request: &GenerateRequest) -> Result<(f32, usize), EngineError> {
        let KvCacheParams { budget, min_budget, .. } = request.kv_cache;
        let num_pages = self.ledger.num_pages();
        let needed = |budget: f32, max_tokens: usize| {
            self.scheduler.demand().peak(budget, request.prompt.len() + max_tokens)
        };
        let fewest = if request.may_shorten { [FAIR_ANSWER, 1] } else { [usize::MAX; 2] };
        let fewest = fewest.map(|tokens| tokens.min(request.max_tokens));
        let choices = [(budget, fewest[0]), (min_budget, fewest[0]), (min_budget, fewest[1])];
        let granted = choices.into_iter().find(|(b, tokens)| needed(*b, *tokens) <= num_pages);
        let Some((budget, fewest)) = granted else {
            let page_bytes = self.ledger.layout().page_bytes;
            return Err(EngineError::DoesNotFit {
                needed_bytes: needed(min_budget, request.max_tokens) * page_bytes,
                total_bytes: num_pages * page_bytes,
            });
        };
        let fits = |tokens: &usize| needed(budget, *tokens) <= num_pages;
        Ok((budget, (fewest..=request.max_tokens).rev().find(fits).unwrap_or(fewest)))
    }
}
