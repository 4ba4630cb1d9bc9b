//! What may come next in one answer.

use std::fmt;

use std::time::{Duration, Instant};

use llguidance::Matcher;

/// Everybody waits while a mask is made. On a busy machine a cheap one may take this long, too.
const SLOW: Duration = Duration::from_millis(400);
const MAX_SLOW: usize = 3;

/// The state of a grammar within one answer. A clone goes on by itself.
#[derive(Clone)]
pub struct Constraint {
    /// Boxed: it is large.
    matcher: Box<Matcher>,
    /// Masks that took too long.
    num_slow: usize,
}

/// What is left to draw from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// At least one token.
    Open,
    /// The grammar has nothing more to say: the answer is complete.
    Complete,
}

impl Constraint {
    pub(super) fn new(matcher: Matcher) -> Self {
        Self { matcher: Box::new(matcher), num_slow: 0 }
    }

    /// One that has nothing in common with this one: what clones learn about the grammar they share.
    pub(super) fn unshared(&self) -> Self {
        Self { matcher: Box::new(self.matcher.deep_clone()), num_slow: 0 }
    }

    pub(super) fn num_slow(&self) -> usize {
        self.num_slow
    }

    /// Rules out the tokens that the grammar does not allow; logits (vocab).
    ///
    /// # Errors
    /// The grammar turned out too complex to go on with.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<Verdict, String> {
        if self.is_complete()? {
            return Ok(Verdict::Complete);
        }
        let started = Instant::now();
        let mask = match self.matcher.compute_mask() {
            Ok(mask) => mask,
            // It may find only here that there is nothing to add.
            Err(_) if self.is_complete()? => return Ok(Verdict::Complete),
            Err(error) => return Err(brief(&error.to_string())),
        };
        self.num_slow += usize::from(started.elapsed() > SLOW);
        if self.num_slow > MAX_SLOW {
            return Err("its steps take too long".into());
        }
        let mut allowed = mask.as_slice().iter();
        for chunk in logits.chunks_mut(32) {
            // The model may have logits for more tokens than the tokenizer knows.
            let bits = allowed.next().copied().unwrap_or(0);
            for (bit, logit) in chunk.iter_mut().enumerate() {
                if bits >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        Ok(Verdict::Open)
    }

    /// Takes the token that was drawn.
    ///
    /// # Errors
    /// The grammar does not allow it, or became too complex.
    pub fn accept(&mut self, id: u32) -> Result<Verdict, String> {
        self.matcher.consume_token(id).map_err(|error| brief(&error.to_string()))?;
        Ok(if self.is_complete()? { Verdict::Complete } else { Verdict::Open })
    }

    fn is_complete(&self) -> Result<bool, String> {
        let reason = self.matcher.stop_reason();
        match self.matcher.is_stopped() {
            true if reason.is_ok() => Ok(true),
            true => Err(brief(&self.matcher.get_error().unwrap_or_else(|| reason.to_string()))),
            false => Ok(false),
        }
    }
}

/// The first line: the others are llguidance's state.
pub(super) fn brief(error: &str) -> String {
    const LONGEST: usize = 300;
    error.lines().next().unwrap_or_default().chars().take(LONGEST).collect()
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Constraint")
    }
}
