use anyhow::Result;
use rand::Rng;

use super::{
    Asked, BEFORE_QUESTION, Grade, Plan, Sample, Task, both_modes, generator, insert, number,
};
use crate::eval::source::Source;

/// A pass key of 64 digits in running text, scored digit by digit (the long passkey of arXiv
/// 2407.01527).
pub struct Passkey;

const DIGITS: usize = 64;

impl Task for Passkey {
    fn name(&self) -> &'static str {
        "passkey"
    }

    fn samples(&self, source: &Source, plan: &Plan) -> Result<Vec<Sample>> {
        let length = plan.lengths[0];
        let texts = source.windows(plan.samples, length, plan.seed + 100)?;
        let mut samples = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            let mut rng = generator(plan, "passkey", index);
            let digits = number(&mut rng, DIGITS);
            let sentence = format!("The secret number is {digits}. Remember it.");
            let depth = rng.random_range(0.0..1.0);
            let before = insert(source, text, &[(depth, sentence)]) + BEFORE_QUESTION;
            let asked = Asked {
                question: "What is the secret number?",
                opening: "The secret number is",
                digits,
                grade: Grade::Places,
            };
            samples.extend(both_modes(source, (length, None), &before, &asked)?);
        }
        Ok(samples)
    }
}
