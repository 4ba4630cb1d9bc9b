use anyhow::Result;

use super::{Mode, Place, Plan, Sample, Task, Then};
use crate::eval::source::Source;

/// Running text: how far the next tokens' probabilities move when the prefix is compressed.
pub struct Kl;

impl Task for Kl {
    fn name(&self) -> &'static str {
        "kl"
    }

    fn samples(&self, source: &Source, plan: &Plan) -> Result<Vec<Sample>> {
        let len = plan.prefix + plan.forced + 1;
        let windows = source.windows(plan.windows, len, plan.seed)?;
        if let Some(warning) = source.overlap(plan.windows, len) {
            eprintln!("kl: {warning}");
        }
        let sample = |window: &Vec<u32>| {
            let (context, rest) = window.split_at(plan.prefix);
            Sample {
                place: Place { mode: Mode::Agnostic, length: plan.prefix, depth: None },
                context: context.to_vec(),
                then: Then::Continue(rest.to_vec()),
            }
        };
        Ok(windows.iter().map(sample).collect())
    }
}
