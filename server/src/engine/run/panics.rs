//! A panic on the engine's thread is a bug of ours, and costs those requests that it met: they end with
//! an error, never with silence.

use std::{
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
};

use tokio::sync::mpsc;

use super::Engine;
use crate::{
    engine::{EngineError, Event, handle::Command, heartbeat::Heartbeat},
    sched::Scheduler,
};

/// What follows once the requests have been told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnPanic {
    /// The engine ends: who watches the process starts it anew.
    #[default]
    Exit,
    /// The engine goes on with an empty cache.
    Restart,
}

impl Engine {
    /// The engine's thread.
    pub(super) fn run(
        mut self,
        mut commands: mpsc::UnboundedReceiver<Command>,
        heartbeat: Heartbeat,
    ) {
        loop {
            // What a panic leaves half done is thrown away, not used.
            match catch_unwind(AssertUnwindSafe(|| self.turn(&mut commands, &heartbeat))) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return,
                Err(_panic) => match self.on_panic {
                    OnPanic::Restart => self.restart(),
                    OnPanic::Exit => return self.give_up(commands),
                },
            }
        }
    }

    fn restart(&mut self) {
        self.fail_all();
        tracing::error!("the engine panicked: it goes on with an empty cache");
        self.ledger = self.ledger.emptied();
        self.scheduler = Scheduler::new(self.limits, *self.scheduler.demand());
        self.metrics.restarted();
        self.publish();
    }

    fn give_up(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        // First: who hears of the failure should know that it is the end.
        commands.close();
        self.fail_all();
        while let Ok(command) = commands.try_recv() {
            if let Command::Generate { events, .. } = command {
                let _ = events.send(Event::Failed(EngineError::Panicked));
            }
        }
        tracing::error!("the engine panicked and ends");
    }

    fn fail_all(&mut self) {
        for (id, stream) in std::mem::take(&mut self.streams) {
            if let Some(seq) = self.scheduler.sequences().find(|seq| seq.id == id) {
                stream.life.record(seq);
            }
            self.failed(&stream, EngineError::Panicked);
        }
    }
}
