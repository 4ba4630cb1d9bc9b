use anyhow::Result;
use rand::{Rng, seq::SliceRandom};

use super::{Asked, BEFORE_QUESTION, Grade, Plan, Sample, Task, both_modes, generator, number};
use crate::eval::source::Source;

/// Retrieval of one of many numbered lines (LongEval; MiKV's own task, arXiv 2402.18096). There a line
/// reads `line <word>: REGISTER_CONTENT is <number>`, of which a model of 135M parameters with its full
/// cache finds none; with name and number side by side it finds a third.
pub struct Lines;

/// Names of lines; a record has no more lines than there are words.
#[rustfmt::skip]
const WORDS: [&str; 202] = [
    "anchor", "apple", "arrow", "autumn", "badge", "bakery", "bamboo", "banjo", "barrel",
    "basket", "beacon", "beaver", "bishop", "blanket", "bottle", "branch", "bridge", "bronze",
    "bucket", "butter", "button", "cabin", "cactus", "camel", "candle", "canyon", "carbon",
    "carpet", "castle", "cello", "chapel", "cherry", "circle", "cliff", "clover", "coffee",
    "comet", "copper", "coral", "cotton", "cradle", "crater", "cricket", "crystal", "curtain",
    "dagger", "daisy", "desert", "diamond", "dolphin", "donkey", "dragon", "drawer", "eagle",
    "easel", "echo", "ember", "engine", "fabric", "falcon", "feather", "fence", "fiddle",
    "forest", "fossil", "fountain", "galaxy", "garden", "garlic", "ginger", "glacier", "goblet",
    "gravel", "guitar", "hammer", "harbor", "harvest", "hazel", "helmet", "hermit", "honey",
    "horizon", "hunter", "igloo", "island", "ivory", "jacket", "jaguar", "jasmine", "jewel",
    "jungle", "kernel", "kettle", "kitten", "ladder", "lantern", "lemon", "leopard", "library",
    "lizard", "lobster", "magnet", "mango", "marble", "market", "meadow", "melon", "mirror",
    "monkey", "mosaic", "mountain", "museum", "mustard", "needle", "nickel", "oasis", "ocean",
    "olive", "onion", "orange", "orchard", "orchid", "otter", "owl", "oyster", "palace",
    "panther", "parrot", "pebble", "pelican", "pencil", "pepper", "piano", "pigeon", "pillow",
    "pirate", "planet", "plaza", "pocket", "poem", "prairie", "prism", "pumpkin", "puzzle",
    "quarry", "quilt", "rabbit", "radish", "raven", "ribbon", "river", "rocket", "saddle",
    "saffron", "salmon", "satin", "saturn", "shadow", "shelter", "shovel", "silver", "sparrow",
    "spider", "spiral", "spoon", "squirrel", "statue", "summer", "sunset", "swan", "temple",
    "thistle", "thunder", "ticket", "tiger", "tobacco", "tomato", "tractor", "trumpet", "tulip",
    "tunnel", "turtle", "umbrella", "valley", "velvet", "violet", "violin", "volcano", "wagon",
    "walnut", "walrus", "water", "whale", "wheel", "willow", "window", "winter", "wizard",
    "wolf", "yacht", "zebra", "zipper",
];

pub const MOST_LINES: usize = WORDS.len();

impl Task for Lines {
    fn name(&self) -> &'static str {
        "lines"
    }

    fn samples(&self, source: &Source, plan: &Plan) -> Result<Vec<Sample>> {
        let per_length = plan.samples.div_ceil(plan.lines.len());
        let mut samples = Vec::new();
        for (row, &num_lines) in plan.lines.iter().enumerate() {
            for index in 0..per_length {
                let mut rng = generator(plan, "lines", row * per_length + index);
                let mut names = WORDS;
                names.shuffle(&mut rng);
                let numbers: Vec<_> = (0..num_lines).map(|_| number(&mut rng, 5)).collect();
                let asked = rng.random_range(0..num_lines);
                let lines = names.iter().zip(&numbers);
                let lines = lines.map(|(name, n)| format!("{name}: {n}\n"));
                let before = format!(
                    "Below is a record of lines. Each line has a name and its number.\n\n{}{}",
                    lines.collect::<String>(),
                    BEFORE_QUESTION.trim_start_matches('\n')
                );
                let name = &names[asked];
                let asked = Asked {
                    question: &format!("What is the number of {name}?"),
                    opening: &format!("{name}:"),
                    digits: numbers[asked].clone(),
                    grade: Grade::Contains,
                };
                samples.extend(both_modes(source, (num_lines, None), &before, &asked)?);
            }
        }
        Ok(samples)
    }
}
