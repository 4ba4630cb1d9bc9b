//! Lines from the terminal or a pipe, and the signals that come instead of them.

use std::io;
use std::thread;

use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use rustyline::{DefaultEditor, error::ReadlineError};
use tokio::signal::unix::{self, SignalKind, signal};
use tokio::sync::mpsc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Interrupt,
    Terminate,
}

/// Both signals are ours from here to the end of the process: tokio never gives one back.
pub struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
}

impl Signals {
    /// # Errors
    /// The handlers cannot be set.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
        }
    }
}

type Answer = Result<String, ReadlineError>;

/// Reads on a thread of its own, which a signal leaves where it is.
pub struct Prompt {
    asks: mpsc::UnboundedSender<()>,
    answers: mpsc::UnboundedReceiver<Answer>,
    /// The editor's own mode would stay when reading is broken off.
    terminal: Option<Termios>,
}

impl Prompt {
    /// # Errors
    /// No editor for this terminal.
    pub fn new() -> Result<Self, ReadlineError> {
        let terminal = tcgetattr(io::stdin()).ok();
        let (asks, asked) = mpsc::unbounded_channel();
        let (sender, answers) = mpsc::unbounded_channel();
        let editor = DefaultEditor::new()?;
        thread::spawn(move || read(editor, asked, &sender));
        Ok(Self { asks, answers, terminal })
    }

    /// The next line.
    ///
    /// # Errors
    /// The end of the input, or Ctrl-C at the prompt.
    pub async fn readline(&mut self) -> Answer {
        // A reader that is gone has said why.
        let _ = self.asks.send(());
        self.answers.recv().await.unwrap_or(Err(ReadlineError::Eof))
    }
}

impl Drop for Prompt {
    fn drop(&mut self) {
        if let Some(terminal) = &self.terminal {
            // A terminal that is gone needs no mode.
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, terminal);
        }
    }
}

/// One line whenever asked.
fn read(
    mut editor: DefaultEditor,
    mut asked: mpsc::UnboundedReceiver<()>,
    answers: &mpsc::UnboundedSender<Answer>,
) {
    while asked.blocking_recv().is_some() {
        let line = editor.readline("> ");
        if let Ok(line) = &line {
            // History is a convenience: no reason to end the chat.
            let _ = editor.add_history_entry(line);
        }
        if answers.send(line).is_err() {
            return;
        }
    }
}
