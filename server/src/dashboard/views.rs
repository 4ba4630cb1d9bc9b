//! The last requests' caches, kept to be looked at. Only with `--debug-kv`: they hold prompts.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::compress::PolicyId;
use crate::engine::KvView;

/// A view of 8,000 tokens takes some 6 MB.
const MAX_REQUESTS: usize = 8;
/// Of one request, at other budgets.
const MAX_REPLAYS: usize = 24;

/// One request and what it looks like at other budgets.
pub struct Viewed {
    pub id: String,
    pub policy: PolicyId,
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
    pub fn add(&self, id: String, policy: PolicyId, view: KvView) {
        let viewed = Viewed { id, policy, view: Arc::new(view), replays: Mutex::default() };
        let mut views = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        views.push_front(Arc::new(viewed));
        views.truncate(MAX_REQUESTS);
    }

    pub fn find(&self, id: &str) -> Option<Arc<Viewed>> {
        self.all().into_iter().find(|viewed| viewed.id == id)
    }

    pub fn all(&self) -> Vec<Arc<Viewed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
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

    #[test]
    fn only_the_last_requests_are_kept() {
        let views = Views::default();
        for nth in 0..MAX_REQUESTS + 2 {
            views.add(format!("r{nth}"), PolicyId::default(), view());
        }
        assert_eq!(views.all().len(), MAX_REQUESTS);
        assert!(views.find("r0").is_none() && views.find("r9").is_some());
        assert_eq!(views.all()[0].id, "r9");
    }

    #[test]
    fn a_replay_is_found_by_its_budget() {
        let views = Views::default();
        views.add("r".into(), PolicyId::default(), view());
        let viewed = views.find("r").unwrap();
        assert!(viewed.replay(0.25).is_none());
        viewed.keep_replay(0.25, Arc::new(view()));
        assert!(viewed.replay(0.25).is_some() && viewed.replay(0.3).is_none());
    }
}
