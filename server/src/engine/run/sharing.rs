//! What sequences take from the prefix cache and leave there, carried out.

use std::collections::HashSet;

use keepwell_kernels::{Move, PageId};

use super::{Engine, Finished};
use crate::{
    cache::Copies,
    sched::{SeqId, Step, sharing},
};

impl Engine {
    pub(super) fn copy(&mut self, copies: &[Copies]) -> anyhow::Result<()> {
        for copies in copies {
            match copies {
                Copies::Pages(pages) => self.copy_pages(pages)?,
                Copies::Tokens(moves) => self.copy_tokens(moves)?,
            }
        }
        Ok(())
    }

    fn copy_pages(&mut self, pages: &[(PageId, PageId)]) -> anyhow::Result<()> {
        Ok(self.backend.copy_pages(&mut self.arena, pages)?)
    }

    fn copy_tokens(&mut self, moves: &[Move]) -> anyhow::Result<()> {
        if !moves.is_empty() {
            self.backend.compact(&mut self.arena, moves)?;
        }
        Ok(())
    }

    /// Leaves for others what the step computed, unless that makes no sense.
    pub(super) fn leave_parts(&mut self, step: &Step, finished: &Finished) {
        let demand = *self.scheduler.demand();
        let failed = |id| finished.iter().any(|(of, end)| *of == id && end.is_err());
        for entry in step.entries.iter().filter(|entry| !failed(entry.id)) {
            let Some(seq) = self.scheduler.running_mut(entry.id) else { continue };
            let moves = sharing::leave_part(seq, entry, &demand, &mut self.ledger);
            let left = self.copy_tokens(&moves).and_then(|()| self.forget_attributions(&moves));
            self.keep_if(left);
        }
    }

    /// Whoever begins with a block has queries of its own to judge its tokens.
    fn forget_attributions(&mut self, moves: &[Move]) -> anyhow::Result<()> {
        let pages: HashSet<PageId> = moves.iter().map(|m| m.to.page).collect();
        for page in pages {
            self.arena.clear_attributions(page)?;
        }
        Ok(())
    }

    pub(super) fn leave_snapshot(&mut self, id: SeqId) -> anyhow::Result<()> {
        let demand = *self.scheduler.demand();
        let Some(seq) = self.scheduler.running(id) else { return Ok(()) };
        if let Some(pages) = sharing::leave_snapshot(seq, &demand, &mut self.ledger) {
            let left = self.copy_pages(&pages);
            self.keep_if(left);
        }
        Ok(())
    }

    /// What could not be copied is booked already: nobody may find it.
    fn keep_if(&mut self, left: anyhow::Result<()>) {
        if let Err(error) = left {
            tracing::error!("the prefix cache could not be filled: {error:#}");
            self.ledger.forget_cached();
        }
    }

    pub(super) fn publish_parts(&mut self, step: &Step) {
        for entry in &step.entries {
            self.scheduler.running_mut(entry.id).into_iter().for_each(sharing::published);
        }
    }
}
