//! Results and the rows of `eval.json`.

use serde::{Deserialize, Serialize};

use super::{
    arms::Arm,
    measure::Outcome,
    stats::{mean, mean_interval, percentile},
    tasks::{Mode, Place},
};

/// One line of `eval.json`. Others parse it: fields are never renamed or dropped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub policy: String,
    /// What was asked for; the bytes ratio itself where a format has a size of its own.
    pub budget: f64,
    /// Bytes held over F16 bytes, mean over samples: the ledger's for the server's policies, by
    /// formula and without page slack for simulated methods.
    pub bytes_ratio: f64,
    pub task: String,
    pub mode: Mode,
    /// Tokens of the context, or lines of the record.
    pub length: usize,
    pub n: usize,
    /// Share of right answers; for `kl` the share of equal top tokens.
    pub score: f64,
    pub kl_mean: Option<f64>,
    pub kl_p99: Option<f64>,
    pub kl_p999: Option<f64>,
    pub top1: Option<f64>,
    pub nll_delta: Option<f64>,
    /// 95 % bootstrap interval of `kl_mean`, or of `score` where there is none.
    pub ci_low: f64,
    pub ci_high: f64,
    pub seed: u64,
    pub model: String,
}

/// All samples of one task, mode and length.
#[derive(Clone, Debug)]
pub struct Cell {
    pub task: &'static str,
    pub mode: Mode,
    pub length: usize,
    /// Of each sample; see [`Place::depth`].
    pub depths: Vec<Option<f64>>,
    /// `[sample][arm]`; `None` for an arm that took no part.
    pub outcomes: Vec<Vec<Option<Outcome>>>,
}

impl Cell {
    /// Of the samples that an arm took part in.
    pub fn of(&self, arm: usize) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().filter_map(move |sample| sample[arm].as_ref())
    }
}

pub struct Results {
    pub arms: Vec<Arm>,
    pub cells: Vec<Cell>,
    pub model: String,
    pub seed: u64,
}

/// What tells arms apart in a task, sample by sample: mean divergence where there is one, else score.
pub fn quality(outcome: &Outcome) -> f64 {
    if outcome.kls.is_empty() { outcome.score } else { mean(&outcome.kls) }
}

impl Results {
    /// `outcomes`: of one sample, one an arm.
    pub fn push(&mut self, task: &'static str, place: Place, outcomes: Vec<Option<Outcome>>) {
        let Place { mode, length, depth } = place;
        let is_it = |cell: &Cell| (cell.task, cell.mode, cell.length) == (task, mode, length);
        let known = self.cells.iter().position(is_it);
        let index = known.unwrap_or_else(|| {
            let (depths, outcomes) = (Vec::new(), Vec::new());
            self.cells.push(Cell { task, mode, length, depths, outcomes });
            self.cells.len() - 1
        });
        self.cells[index].depths.push(depth);
        self.cells[index].outcomes.push(outcomes);
    }

    /// (task, mode) pairs in the order they came.
    pub fn tasks(&self) -> Vec<(&'static str, Mode)> {
        let mut tasks = Vec::new();
        for cell in &self.cells {
            if !tasks.contains(&(cell.task, cell.mode)) {
                tasks.push((cell.task, cell.mode));
            }
        }
        tasks
    }

    /// Outcomes of one arm over all lengths, in the same order for every arm.
    pub fn outcomes(&self, task: &str, mode: Mode, arm: usize) -> Vec<&Outcome> {
        let cells = self.cells.iter().filter(|cell| cell.task == task && cell.mode == mode);
        cells.flat_map(|cell| cell.of(arm)).collect()
    }

    /// The arms that took part in a task.
    pub fn arms_in(&self, task: &str, mode: Mode) -> impl Iterator<Item = usize> {
        (0..self.arms.len()).filter(move |arm| !self.outcomes(task, mode, *arm).is_empty())
    }

    pub fn rows(&self) -> Vec<Row> {
        let of_cell = |cell: &'_ Cell| {
            let of_arm = |arm: usize| (arm, cell.of(arm).collect::<Vec<_>>());
            let took_part = (0..self.arms.len()).map(of_arm).filter(|(_, all)| !all.is_empty());
            let row = |(arm, outcomes): (usize, Vec<_>)| {
                self.row((cell.task, cell.mode), cell.length, arm, &outcomes)
            };
            took_part.map(row).collect::<Vec<_>>()
        };
        self.cells.iter().flat_map(of_cell).collect()
    }

    /// The row of some outcomes of one arm.
    pub fn row(
        &self,
        (task, mode): (&str, Mode),
        length: usize,
        arm: usize,
        outcomes: &[&Outcome],
    ) -> Row {
        let of = |value: fn(&Outcome) -> f64| -> Vec<f64> {
            outcomes.iter().map(|outcome| value(outcome)).collect()
        };
        let kls: Vec<f64> = outcomes.iter().flat_map(|outcome| &outcome.kls).copied().collect();
        let of_kl = |value: f64| (!kls.is_empty()).then_some(value);
        let interval = mean_interval(&of(quality), self.seed);
        let bytes_ratio = mean(&of(|outcome| outcome.bytes_ratio));
        let score = mean(&of(|outcome| outcome.score));
        Row {
            policy: self.arms[arm].name().to_owned(),
            budget: self.arms[arm].budget.unwrap_or(bytes_ratio),
            bytes_ratio,
            task: task.to_owned(),
            mode,
            length,
            n: outcomes.len(),
            score,
            kl_mean: of_kl(mean(&kls)),
            kl_p99: of_kl(percentile(&kls, 0.99)),
            kl_p999: of_kl(percentile(&kls, 0.999)),
            top1: of_kl(score),
            nll_delta: of_kl(mean(&of(|outcome| outcome.nll_delta))),
            ci_low: interval.low,
            ci_high: interval.high,
            seed: self.seed,
            model: self.model.clone(),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::eval::arms::arms;

    /// Three arms with known divergences and one task with answers.
    pub fn results() -> Results {
        let names = ["attribution", "uniform_k4v4", "uniform_k8v8"].map(String::from);
        let mut results = Results {
            arms: arms(&names, &[0.28]).unwrap(),
            cells: vec![],
            model: "m".into(),
            seed: 1,
        };
        for sample in 0..8 {
            let hardness = 1.0 + f64::from(sample);
            let kl = |bytes_ratio, kl: f64| Outcome {
                bytes_ratio,
                score: 0.9,
                kls: vec![kl * hardness; 4],
                nll_delta: 0.01,
            };
            let kls = vec![kl(1.0, 0.0), kl(0.279, 0.001), kl(0.53, 1e-5), kl(0.283, 0.004)];
            let at = |mode, depth| Place { mode, length: 100, depth };
            results.push("kl", at(Mode::Agnostic, None), kls.into_iter().map(Some).collect());
            let answer = |bytes_ratio, right| Outcome {
                bytes_ratio,
                score: f64::from(u8::from(right)),
                ..Outcome::default()
            };
            let easy = sample != 0;
            let answers = vec![
                answer(1.0, true),
                answer(0.279, easy),
                answer(0.53, true),
                answer(0.283, sample > 3),
            ];
            let depth = f64::from(sample) / 8.0;
            let answers = answers.into_iter().map(Some).collect();
            results.push("needle", at(Mode::Aware, Some(depth)), answers);
        }
        results
    }

    #[test]
    fn rows_have_exactly_the_fields_that_others_parse() {
        let rows = results().rows();
        let value = serde_json::to_value(&rows[0]).unwrap();
        let fields: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(
            fields,
            [
                "policy",
                "budget",
                "bytes_ratio",
                "task",
                "mode",
                "length",
                "n",
                "score",
                "kl_mean",
                "kl_p99",
                "kl_p999",
                "top1",
                "nll_delta",
                "ci_low",
                "ci_high",
                "seed",
                "model"
            ]
        );
        assert_eq!(value["mode"], "agnostic");
        let text = serde_json::to_string(&rows).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Row>>(&text).unwrap(), rows);
    }

    #[test]
    fn an_arm_that_took_no_part_has_no_row() {
        let mut results = results();
        let needle = results.cells.iter_mut().find(|cell| cell.task == "needle").unwrap();
        needle.outcomes.iter_mut().for_each(|sample| sample[2] = None);
        let is_it = |row: &&Row| row.policy == "uniform_k8v8";
        assert_eq!(results.rows().iter().filter(is_it).count(), 1);
        assert_eq!(results.arms_in("needle", Mode::Aware).count(), 3);
        assert_eq!(results.arms_in("kl", Mode::Agnostic).count(), 4);
    }

    #[test]
    fn a_row_sums_up_its_samples() {
        let rows = results().rows();
        assert_eq!(rows.len(), 8);
        let row = rows.iter().find(|r| r.policy == "attribution" && r.task == "kl").unwrap();
        assert_eq!((row.n, row.budget), (8, 0.28));
        assert!((row.kl_mean.unwrap() - 0.0045).abs() < 1e-9);
        assert!(row.ci_low < 0.0045 && 0.0045 < row.ci_high);
        assert!((row.kl_p99.unwrap() - 0.008).abs() < 1e-9);
        let answers =
            rows.iter().find(|r| r.policy == "attribution" && r.task == "needle").unwrap();
        assert_eq!((answers.score, answers.kl_mean), (0.875, None));
        let fixed = rows.iter().find(|r| r.policy == "uniform_k4v4").unwrap();
        assert_eq!(fixed.budget, fixed.bytes_ratio);
    }
}
