//! The grammars that were asked for last, compiled: many requests ask for the same one.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Constraint, Grammar};

/// A grammar's states take tens of megabytes at most.
const MAX_LEN: usize = 16;

/// The latest first.
#[derive(Default)]
pub struct Recent(Mutex<VecDeque<(Grammar, Constraint)>>);

impl Recent {
    pub fn get(&self, grammar: &Grammar) -> Option<Constraint> {
        let mut recent = self.lock();
        let index = recent.iter().position(|(known, _)| known == grammar)?;
        let found = recent.remove(index)?;
        let constraint = found.1.unshared();
        recent.push_front(found);
        Some(constraint)
    }

    pub fn insert(&self, grammar: Grammar, constraint: &Constraint) {
        let mut recent = self.lock();
        recent.retain(|(known, _)| *known != grammar);
        recent.push_front((grammar, constraint.unshared()));
        recent.truncate(MAX_LEN);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Grammar, Constraint)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
