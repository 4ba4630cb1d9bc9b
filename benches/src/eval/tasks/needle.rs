use anyhow::Result;

use super::{
    Asked, BEFORE_QUESTION, Grade, Plan, Sample, Task, both_modes, generator, insert, number,
};
use crate::eval::source::Source;

/// A seven-digit number in running text: every length with every depth (needle in a haystack, Kamradt
/// 2023).
pub struct Needle;

impl Task for Needle {
    fn name(&self) -> &'static str {
        "needle"
    }

    fn samples(&self, source: &Source, plan: &Plan) -> Result<Vec<Sample>> {
        let depths = plan.samples.div_ceil(plan.lengths.len());
        let mut samples = Vec::new();
        for (row, &length) in plan.lengths.iter().enumerate() {
            let texts = source.windows(depths, length, plan.seed + row as u64)?;
            for (column, text) in texts.iter().enumerate() {
                let digits = number(&mut generator(plan, "needle", row * depths + column), 7);
                let depth = (column as f64 + 0.5) / depths as f64;
                let sentence = format!("The secret number is {digits}.");
                let before = insert(source, text, &[(depth, sentence)]) + BEFORE_QUESTION;
                let asked = Asked {
                    question: "What is the secret number?",
                    opening: "The secret number is",
                    digits,
                    grade: Grade::Contains,
                };
                samples.extend(both_modes(source, (length, Some(depth)), &before, &asked)?);
            }
        }
        Ok(samples)
    }
}
