use keepwell_kernels::Signal;

use crate::compress::{Policy, TokenSignals};

/// The default: the squared change of a head's output if the token were deleted, exact for one
/// token, summed over the last queries: `(p/(1-p))^2 |v - o|^2` (DropKV; CAOTE, arXiv 2504.14051,
/// has its root for one query).
pub struct Attribution;

impl Policy for Attribution {
    fn name(&self) -> &'static str {
        "attribution"
    }

    fn signal(&self) -> Option<Signal> {
        Some(Signal::Deletion)
    }

    fn score(&self, tokens: &TokenSignals, out: &mut [f32]) {
        out.copy_from_slice(tokens.signals);
    }
}
