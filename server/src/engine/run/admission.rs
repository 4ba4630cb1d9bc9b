//! What a request becomes, if it may.

use super::Engine;
use crate::{
    engine::{EngineError, GenerateRequest, KvCacheParams},
    sched::{FAIR_ANSWER, SeqId, Sequence, Sharing},
};

impl Engine {
    /// Admission: refuses what no waiting would help.
    pub(super) fn sequence(&mut self, request: &GenerateRequest) -> Result<Sequence, EngineError> {
        if !self.scheduler.can_queue(request.prompt.len()) {
            let num_waiting = self.scheduler.num_waiting();
            let num_tokens = self.scheduler.num_waiting_tokens();
            return Err(EngineError::QueueFull { num_waiting, num_tokens });
        }
        let max_tokens = self.most_tokens(request)?;
        let KvCacheParams { budget, min_budget, policy } = request.kv_cache;
        let marked = request.marked.within(request.prompt.len());
        self.next_id += 1;
        let num_heads = self.scheduler.demand().num_heads;
        let salt = request.cache_salt;
        let salt = salt.filter(|_| self.prefix_cache && request.pooling.is_none());
        // What events leave depends on the marks: those with others share nothing.
        let salt = salt.map(|salt| if min_budget < 1.0 { salt.marked(&marked) } else { salt });
        let reads = request.sampling.prompt_logprobs.is_none();
        let seq = Sequence {
            max_len: request.prompt.len() + max_tokens,
            may_shorten: request.may_shorten,
            policy,
            marked,
            priority: request.priority,
            user: request.user,
            chunk_len: self.scheduler.demand().max_chunk,
            sharing: Sharing::new(salt, reads),
            ..Sequence::new(
                SeqId(self.next_id),
                request.prompt.clone(),
                [budget, min_budget],
                num_heads,
            )
        };
        self.check_marked(&seq)?;
        Ok(seq)
    }

    fn check_marked(&self, seq: &Sequence) -> Result<(), EngineError> {
        let num_marked = seq.marked.num_tokens();
        let most = self.scheduler.demand().most_marked(seq.min_budget, seq.prefilled_len());
        match num_marked <= most || !seq.is_scored() {
            true => Ok(()),
            false => Err(EngineError::MarksTooMuch { num_marked, most }),
        }
    }

    /// The number of tokens that memory can hold in the end, were the request alone. One that does not
    /// fit at its budget will be squeezed, down to its own floor; one whose caller named no limit is
    /// shortened before that, as long as a fair answer is left.
    fn most_tokens(&self, request: &GenerateRequest) -> Result<usize, EngineError> {
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
        Ok((fewest..=request.max_tokens).rev().find(fits).unwrap_or(fewest))
    }
}
