//! The last requests' caches, kept to be looked at. Only with `--debug-kv`: they hold prompts.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::compress::{PolicyId, Spans};
use crate::engine::KvView;
use crate::http::Caller;

/// A view of 8,000 tokens takes some 6 MB.
const MAX_REQUESTS: usize = 8;
/// Of one request, at other budgets.
const MAX_REPLAYS: usize = 24;

/// A request whose cache is looked at in the end.
pub struct Viewing {
    pub id: String,
    /// To others it does not exist.
    pub caller: Caller,
    pub policy: PolicyId,
    pub marked: Spans,
}

/// One request and what it looks like at other budgets.
pub struct Viewed {
    pub request: Viewing,
    pub view: Arc<KvView>,
    /// Newest first.
    replays: Mutex<VecDeque<(f32, Arc<KvView>)>>,
}

impl Viewed {
    /// A replay at this very budget.
    pub fn replay(&self, budget: f32) -> Option<Arc<KvView>> {
        let replays = self.replays.lock().unwrap_or_else(PoisonError::into_inner);
        replays.iter().find(|(known, _)| *known == budget).map(|(_, view)| view.clone())
    }

    pub fn keep_replay(&self, budget: f32, view: Arc<KvView>) {
        let mut replays = self.replays.lock().unwrap_or_else(PoisonError::into_inner);
        replays.push_front((budget, view));
        replays.truncate(MAX_REPLAYS);
    }
}

/// Newest first.
#[derive(Default)]
pub struct Views(Mutex<VecDeque<Arc<Viewed>>>);

impl Views {
    pub fn add(&self, request: Viewing, view: KvView) {
        let viewed = Viewed { request, view: Arc::new(view), replays: Mutex::default() };
        let mut views = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        views.push_front(Arc::new(viewed));
        views.truncate(MAX_REQUESTS);
    }

    /// The caller's request of this id.
    pub fn find(&self, id: &str, caller: Caller) -> Option<Arc<Viewed>> {
        self.all(caller).into_iter().find(|viewed| viewed.request.id == id)
    }

    /// The caller's.
    pub fn all(&self, caller: Caller) -> Vec<Arc<Viewed>> {
        let views = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        views.iter().filter(|viewed| viewed.request.caller == caller).cloned().collect()
    }
}

#[cfg(test)]
pub mod tests {
    use keepwell_kernels::{PerTier, Tier};

    use super::*;
    use crate::engine::view::Kept;

    /// Two layers with one head each, three tokens: kept, squeezed and evicted in the first layer.
    pub fn view() -> KvView {
        let kept = |tier, score| Kept { tier, score: Some(score) };
        KvView {
            tokens: vec![104, 195, 169],
            prompt_len: 2,
            num_layers: 2,
            budget: 0.5,
            bytes: 10,
            f16_bytes: 20,
            bits: PerTier::new(|tier| if tier == Tier::F16 { 16.0 } else { 4.0 }),
            heads: vec![
                vec![kept(Some(Tier::F16), 2.0), kept(Some(Tier::K4V4), 1.0), kept(None, 0.25)],
                vec![kept(Some(Tier::F16), 1.0); 3],
            ],
        }
    }

    pub fn viewing(id: &str) -> Viewing {
        let (policy, marked) = (PolicyId::default(), Spans::default());
        Viewing { id: id.into(), caller: Caller::UNKNOWN, policy, marked }
    }

    #[test]
    fn only_the_last_requests_are_kept() {
        let views = Views::default();
        for nth in 0..MAX_REQUESTS + 2 {
            views.add(viewing(&format!("r{nth}")), view());
        }
        let found = |id: &str| views.find(id, Caller::UNKNOWN).is_some();
        assert!(!found("r0") && found("r9"));
        let all = views.all(Caller::UNKNOWN);
        assert_eq!((all.len(), all[0].request.id.as_str()), (MAX_REQUESTS, "r9"));
    }

    #[test]
    fn a_replay_is_found_by_its_budget() {
        let views = Views::default();
        views.add(viewing("r"), view());
        let viewed = views.find("r", Caller::UNKNOWN).unwrap();
        assert!(viewed.replay(0.25).is_none());
        viewed.keep_replay(0.25, Arc::new(view()));
        assert!(viewed.replay(0.25).is_some() && viewed.replay(0.3).is_none());
    }
}
