use anyhow::Result;
use rand::Rng;

use super::{
    Asked, BEFORE_QUESTION, Grade, Mode, Place, Plan, Sample, Task, Then, generator, insert, number,
};
use crate::eval::source::Source;

/// Two numbers in running text and two questions, one after the other, on one compressed context
/// (SCBench, arXiv 2412.10319: what the first question does not need, the second may). Where
/// compression is aware, it knows the first question only.
pub struct Multiturn;

const COLOURS: [&str; 2] = ["red", "blue"];

impl Task for Multiturn {
    fn name(&self) -> &'static str {
        "multiturn"
    }

    fn samples(&self, source: &Source, plan: &Plan) -> Result<Vec<Sample>> {
        let length = plan.lengths[0];
        let texts = source.windows(plan.samples, length, plan.seed + 200)?;
        let mut samples = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            let mut rng = generator(plan, "multiturn", index);
            let depths = [rng.random_range(0.0..0.5), rng.random_range(0.5..1.0)];
            let digits = COLOURS.map(|_| number(&mut rng, 7));
            // Which of the two is asked for first is drawn as well.
            let first = rng.random_range(0..2);
            let sentence = |i: usize| format!("The {} number is {}.", COLOURS[i], digits[i]);
            let inserts = [0, 1].map(|i| (depths[i], sentence(i)));
            let before = insert(source, text, &inserts) + BEFORE_QUESTION;
            let questions = COLOURS.map(|colour| format!("What is the {colour} number?"));
            let openings = COLOURS.map(|colour| format!("The {colour} number is"));
            let turns = [first, 1 - first].map(|i| Asked {
                question: &questions[i],
                opening: &openings[i],
                digits: digits[i].clone(),
                grade: Grade::Contains,
            });
            let [head, tail] = source.ask(&before, turns[0].question, turns[0].opening)?;
            let next = source.follow_up(turns[1].question, turns[1].opening)?;
            let whole = [&head[..], &tail].concat();
            for (mode, context, prompt) in
                [(Mode::Agnostic, head, tail), (Mode::Aware, whole, vec![])]
            {
                let then =
                    Then::Ask(vec![turns[0].question(prompt), turns[1].question(next.clone())]);
                let place = Place { mode, length, depth: None };
                samples.push(Sample { place, context, then });
            }
        }
        Ok(samples)
    }
}
