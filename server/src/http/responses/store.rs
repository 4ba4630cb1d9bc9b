//! Responses that others may go on from, in memory: the oldest are forgotten.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use super::super::user::Caller;

const MAX_RESPONSES: usize = 1024;
/// Of their texts as JSON.
const MAX_BYTES: usize = 64 << 20;

/// What is known of an answered request.
#[derive(Clone)]
pub struct Stored {
    /// To others it does not exist.
    pub holder: Caller,
    /// The conversation as a chat, the answer included.
    pub messages: Vec<Value>,
    /// What the client got.
    pub response: Value,
}

/// A bounded memory of responses.
#[derive(Default)]
pub struct StoredResponses(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    by_id: HashMap<String, (Arc<Stored>, usize)>,
    /// Oldest first.
    order: VecDeque<String>,
    num_bytes: usize,
}

impl StoredResponses {
    /// The caller's response of this id.
    pub fn get(&self, id: &str, caller: Caller) -> Option<Arc<Stored>> {
        let found = self.lock().by_id.get(id).map(|(stored, _)| stored.clone());
        found.filter(|stored| stored.holder == caller)
    }

    pub fn insert(&self, id: &str, stored: Stored) {
        let num_bytes = size(&stored);
        if num_bytes > MAX_BYTES {
            return;
        }
        let mut inner = self.lock();
        inner.num_bytes += num_bytes;
        inner.by_id.insert(id.to_owned(), (Arc::new(stored), num_bytes));
        inner.order.push_back(id.to_owned());
        while inner.order.len() > MAX_RESPONSES || inner.num_bytes > MAX_BYTES {
            let Some(oldest) = inner.order.pop_front() else { return };
            inner.forget(&oldest);
        }
    }

    /// Whether the caller had one.
    pub fn remove(&self, id: &str, caller: Caller) -> bool {
        if self.get(id, caller).is_none() {
            return false;
        }
        let mut inner = self.lock();
        inner.order.retain(|known| known != id);
        inner.forget(id)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn forget(&mut self, id: &str) -> bool {
        let Some((_, num_bytes)) = self.by_id.remove(id) else { return false };
        self.num_bytes -= num_bytes;
        true
    }
}

fn size(stored: &Stored) -> usize {
    let messages: usize = stored.messages.iter().map(|m| m.to_string().len()).sum();
    messages + stored.response.to_string().len()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ANYONE: Caller = Caller::UNKNOWN;

    fn stored(text: &str) -> Stored {
        Stored { holder: ANYONE, messages: vec![json!(text)], response: json!({}) }
    }

    #[test]
    fn the_oldest_are_forgotten_when_there_are_too_many_or_they_are_too_large() {
        let responses = StoredResponses::default();
        for id in 0..MAX_RESPONSES + 1 {
            responses.insert(&id.to_string(), stored("x"));
        }
        assert!(responses.get("0", ANYONE).is_none() && responses.get("1", ANYONE).is_some());
        responses.insert("large", stored(&"x".repeat(MAX_BYTES - 100)));
        assert!(responses.get("large", ANYONE).is_some());
        let num_left = responses.lock().by_id.len();
        assert!(num_left < 30 && responses.lock().num_bytes <= MAX_BYTES, "{num_left}");
        responses.insert("too large", stored(&"x".repeat(MAX_BYTES)));
        assert!(
            responses.get("too large", ANYONE).is_none()
                && responses.get("large", ANYONE).is_some()
        );
    }

    #[test]
    fn what_is_removed_is_gone_and_costs_nothing() {
        let responses = StoredResponses::default();
        responses.insert("a", stored("x"));
        assert!(responses.remove("a", ANYONE) && !responses.remove("a", ANYONE));
        assert_eq!(responses.lock().num_bytes, 0);
        assert!(responses.lock().order.is_empty());
    }
}
