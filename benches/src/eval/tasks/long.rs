use anyhow::Result;

use super::{Mode, Place, Plan, Sample, Task, Then};
use crate::eval::source::Source;

/// A long generation: a third of the prefix of `kl` is the prompt, and four times its continuation
/// comes token by token, compressed as it grows. Simulated methods compress the prompt alone and are
/// charged what follows in F16.
pub struct Long;

impl Task for Long {
    fn name(&self) -> &'static str {
        "long"
    }

    fn samples(&self, source: &Source, plan: &Plan) -> Result<Vec<Sample>> {
        let (prompt_len, forced) = (plan.prefix / 3, 4 * plan.forced);
        let windows = source.windows(plan.windows, prompt_len + forced + 1, plan.seed + 300)?;
        let sample = |window: &Vec<u32>| {
            let (context, rest) = window.split_at(prompt_len);
            Sample {
                place: Place { mode: Mode::Agnostic, length: prompt_len + forced, depth: None },
                context: context.to_vec(),
                then: Then::Follow(rest.to_vec()),
            }
        };
        Ok(windows.iter().map(sample).collect())
    }
}
