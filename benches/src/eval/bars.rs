//! What the default policy is to reach, and whether a run shows that it does.

use serde::Serialize;

use super::{
    compare::Comparison,
    conditions::Conditions,
    measure::Outcome,
    methods::METHODS,
    overhead::{Overhead, Share},
    rows::{Cell, Results, quality},
    stats::{Interval, difference_interval, mean, mean_interval, ratio_interval},
    tasks::Mode,
};

pub const POLICY: &str = "attribution";
/// With fewer samples an interval says little.
const LEAST_SAMPLES: usize = 32;
/// Of a shorter context too much is protected.
const LEAST_PREFIX: usize = 3000;

struct Bar {
    words: &'static str,
    /// `None` where it does not depend on one.
    budget: Option<f64>,
    limit: Limit,
    /// `None` when the run has nothing to tell it by.
    read: Read,
}

/// What a run says at a budget.
type Read = fn(&Run, f64) -> Option<Reading>;

/// Of [`POLICY`]. Questions are those that come after compression.
#[rustfmt::skip]
static BARS: &[Bar] = &[
    Bar { words: "KL over the best baseline's", budget: Some(0.28), limit: Limit::Surely(0.5, 0.7), read: kl_ratio },
    Bar { words: "KL over the best baseline's", budget: Some(0.2), limit: Limit::Surely(0.5, 0.7), read: kl_ratio },
    Bar { words: "KL over the best baseline's", budget: Some(0.125), limit: Limit::Surely(0.5, 0.7), read: kl_ratio },
    Bar { words: "KL", budget: Some(0.28), limit: Limit::AtMost(0.0012), read: |run, budget| run.kl(budget, quality) },
    Bar { words: "top-1", budget: Some(0.28), limit: Limit::AtLeast(0.975), read: |run, budget| run.kl(budget, score) },
    Bar { words: "KL", budget: Some(0.2), limit: Limit::AtMost(0.007), read: |run, budget| run.kl(budget, quality) },
    Bar { words: "KL", budget: Some(0.125), limit: Limit::AtMost(0.025), read: |run, budget| run.kl(budget, quality) },
    Bar { words: "needle minus the full cache's", budget: Some(0.2), limit: Limit::AtLeast(-0.03), read: |run, budget| run.difference("needle", budget) },
    Bar { words: "lines minus the full cache's", budget: Some(0.2), limit: Limit::AtLeast(-0.03), read: |run, budget| run.difference("lines", budget) },
    Bar { words: "needle over the full cache's", budget: Some(0.125), limit: Limit::AtLeast(0.85), read: |run, budget| run.ratio("needle", budget) },
    Bar { words: "lines over the full cache's", budget: Some(0.125), limit: Limit::AtLeast(0.85), read: |run, budget| run.ratio("lines", budget) },
    Bar { words: "compression's share of prefill", budget: Some(0.2), limit: Limit::AtMost(0.1), read: |run, _| share(&run.overhead.prefill) },
    Bar { words: "compression's share of decode", budget: Some(0.2), limit: Limit::AtMost(0.03), read: |run, _| share(&run.overhead.decode) },
    Bar { words: "seconds of calibration", budget: None, limit: Limit::AtMost(60.0), read: |run, _| run.calibration() },
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Limit {
    AtLeast(f64),
    AtMost(f64),
    /// At most the first, with an interval that ends below the second.
    Surely(f64, f64),
}

impl Limit {
    fn words(self) -> String {
        match self {
            Self::AtLeast(limit) => format!("at least {limit}"),
            Self::AtMost(limit) => format!("at most {limit}"),
            Self::Surely(limit, end) => format!("at most {limit}, interval below {end}"),
        }
    }

    fn is_met(self, reading: &Reading) -> bool {
        match self {
            Self::AtLeast(limit) => reading.value >= limit,
            Self::AtMost(limit) => reading.value <= limit,
            Self::Surely(limit, end) => {
                reading.value <= limit && reading.interval.is_some_and(|i| i.high < end)
            }
        }
    }
}

/// What a run measured.
pub struct Run<'a> {
    pub results: &'a Results,
    pub comparisons: &'a [Comparison],
    pub overhead: &'a Overhead,
    pub conditions: &'a Conditions,
}

/// A bar in words, and what a run says about it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    pub bar: String,
    pub value: Option<f64>,
    /// 95 % interval of the value, paired where it is of two caches.
    pub low: Option<f64>,
    pub high: Option<f64>,
    pub n: Option<usize>,
    /// `None` when it was not measured.
    pub met: Option<bool>,
    /// What the run lacks to measure it.
    pub lacks: Option<String>,
}

impl Verdict {
    /// `met`, `missed`, or `not measured` with the reason.
    pub fn words(&self) -> String {
        match (self.met, &self.lacks) {
            (Some(true), _) => "met".to_owned(),
            (Some(false), _) => "missed".to_owned(),
            (None, lacks) => format!("not measured: {}", lacks.as_deref().unwrap_or("no data")),
        }
    }

    /// The value with its interval.
    pub fn figures(&self) -> String {
        match (self.value, self.low, self.high) {
            (Some(value), Some(low), Some(high)) => format!("{value:.4} ({low:.4} - {high:.4})"),
            (Some(value), ..) => format!("{value:.4}"),
            _ => String::new(),
        }
    }
}

pub fn verdicts(run: &Run) -> Vec<Verdict> {
    BARS.iter().map(|bar| bar.verdict(run)).collect()
}

pub fn print(verdicts: &[Verdict]) {
    println!("\nBars of {POLICY}");
    for verdict in verdicts {
        println!("{:70} {:27} {}", verdict.bar, verdict.figures(), verdict.words());
    }
}

impl Bar {
    fn at(&self) -> String {
        self.budget.map(|budget| format!(" at {budget}")).unwrap_or_default()
    }

    fn verdict(&self, run: &Run) -> Verdict {
        let budget = self.budget.unwrap_or(1.0);
        let reading = (self.read)(run, budget).filter(|reading| reading.value.is_finite());
        let lacks = match &reading {
            None => Some("no such samples".to_owned()),
            Some(reading) => reading.lacks(),
        };
        let met = reading.as_ref().filter(|_| lacks.is_none()).map(|r| self.limit.is_met(r));
        let interval = reading.as_ref().and_then(|reading| reading.interval);
        Verdict {
            bar: format!("{}{}: {}", self.words, self.at(), self.limit.words()),
            value: reading.as_ref().map(|reading| reading.value),
            low: interval.map(|interval| interval.low),
            high: interval.map(|interval| interval.high),
            n: reading.and_then(|reading| reading.n),
            met,
            lacks,
        }
    }
}

struct Reading {
    value: f64,
    interval: Option<Interval>,
    /// Samples, where there are any.
    n: Option<usize>,
    lacks: Option<String>,
}

impl Reading {
    fn lacks(&self) -> Option<String> {
        let few = self.n.filter(|n| *n < LEAST_SAMPLES);
        few.map(|n| format!("n = {n} of {LEAST_SAMPLES}")).or_else(|| self.lacks.clone())
    }
}

fn share(share: &Share) -> Option<Reading> {
    Some(Reading { value: share.share, interval: None, n: None, lacks: None })
}

fn score(outcome: &Outcome) -> f64 {
    outcome.score
}

/// Against the best baseline at equal or more bytes, which a run without all of them may not have met.
fn kl_ratio(run: &Run, budget: f64) -> Option<Reading> {
    let is_it = |c: &&Comparison| c.is_best && c.policy == POLICY && c.task == "kl";
    let best = run.comparisons.iter().filter(is_it).find(|c| c.budget == budget)?;
    let interval = Some(Interval { low: best.low, high: best.high });
    let lacks = run.short_context("kl").or_else(|| run.missing_baselines());
    Some(Reading { value: best.effect, interval, n: Some(best.n), lacks })
}

impl Run<'_> {
    fn kl(&self, budget: f64, of: fn(&Outcome) -> f64) -> Option<Reading> {
        let values = self.values("kl", self.arm(budget)?, of)?;
        let interval = Some(mean_interval(&values, self.results.seed));
        let n = Some(values.len());
        Some(Reading { value: mean(&values), interval, n, lacks: self.short_context("kl") })
    }

    fn calibration(&self) -> Option<Reading> {
        let value = self.conditions.calibration_seconds?;
        Some(Reading { value, interval: None, n: None, lacks: None })
    }

    fn difference(&self, task: &str, budget: f64) -> Option<Reading> {
        let (ours, full) = self.beside_full(task, budget)?;
        let interval = Some(difference_interval(&ours, &full, self.results.seed));
        let n = Some(ours.len());
        let lacks = self.short_context(task);
        Some(Reading { value: mean(&ours) - mean(&full), interval, n, lacks })
    }

    fn ratio(&self, task: &str, budget: f64) -> Option<Reading> {
        let (ours, full) = self.beside_full(task, budget)?;
        let interval = Some(ratio_interval(&ours, &full, self.results.seed));
        let n = Some(ours.len());
        let lacks = self.short_context(task);
        Some(Reading { value: mean(&ours) / mean(&full), interval, n, lacks })
    }

    /// Scores of the policy and of the full cache, sample by sample.
    fn beside_full(&self, task: &str, budget: f64) -> Option<(Vec<f64>, Vec<f64>)> {
        let full = self.results.arms.iter().position(|arm| arm.is_full())?;
        Some((self.values(task, self.arm(budget)?, score)?, self.values(task, full, score)?))
    }

    fn values(&self, task: &str, arm: usize, of: fn(&Outcome) -> f64) -> Option<Vec<f64>> {
        let outcomes = self.cells(task).into_iter().flat_map(|cell| cell.of(arm));
        let values: Vec<f64> = outcomes.map(of).collect();
        (!values.is_empty()).then_some(values)
    }

    /// Of the task, the samples that are long enough; all where none is.
    fn cells(&self, task: &str) -> Vec<&Cell> {
        let cells = self.results.cells.iter();
        let asked = cells.filter(|cell| cell.task == task && cell.mode == Mode::Agnostic);
        let (long, short): (Vec<_>, Vec<_>) = asked.partition(|cell| is_long(cell));
        if long.is_empty() { short } else { long }
    }

    fn arm(&self, budget: f64) -> Option<usize> {
        let mut arms = self.results.arms.iter();
        arms.position(|arm| arm.name() == POLICY && arm.budget == Some(budget))
    }

    fn short_context(&self, task: &str) -> Option<String> {
        let short = self.cells(task).into_iter().find(|cell| !is_long(cell))?.length;
        Some(format!("a context of {short} tokens, not {LEAST_PREFIX}"))
    }

    fn missing_baselines(&self) -> Option<String> {
        let has = |name| self.results.arms.iter().any(|arm| arm.name() == name);
        let names = METHODS.iter().map(|method| method.name());
        let missing: Vec<_> = names.filter(|name| !has(*name)).collect();
        (!missing.is_empty()).then(|| format!("without {}", missing.join(", ")))
    }
}

/// Where the length is in tokens; a record's is in lines.
fn is_long(cell: &Cell) -> bool {
    cell.length >= LEAST_PREFIX || cell.task == "lines"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::{
        compare::comparisons, conditions::tests::conditions, rows::tests::results, tasks::Place,
    };

    fn check(results: &Results, share: f64, check: impl FnOnce(&[Verdict])) {
        let overhead = Overhead::of_share(share);
        let comparisons = comparisons(results);
        let conditions = conditions(Some(61.0));
        let run = Run {
            results,
            comparisons: &comparisons,
            overhead: &overhead,
            conditions: &conditions,
        };
        check(&verdicts(&run));
    }

    /// The same samples so many times.
    fn repeated(times: usize) -> Results {
        let mut results = results();
        for cell in &mut results.cells {
            cell.outcomes = vec![cell.outcomes.clone(); times].concat();
            if cell.task == "kl" {
                cell.length = LEAST_PREFIX;
            }
        }
        results
    }

    fn find<'a>(verdicts: &'a [Verdict], start: &str) -> &'a Verdict {
        verdicts.iter().find(|verdict| verdict.bar.starts_with(start)).unwrap()
    }

    #[test]
    fn a_bar_is_met_or_missed_by_its_value() {
        check(&repeated(4), 0.05, |verdicts| {
            assert_eq!(find(verdicts, "top-1 at 0.28").met, Some(false));
            assert_eq!(find(verdicts, "KL at 0.28").met, Some(false));
            assert_eq!(find(verdicts, "compression's share of prefill").met, Some(true));
            assert_eq!(find(verdicts, "compression's share of decode").words(), "missed");
            assert_eq!(find(verdicts, "seconds of calibration: at most 60").words(), "missed");
        });
    }

    #[test]
    fn few_samples_and_short_prefixes_measure_nothing() {
        check(&results(), 0.0, |verdicts| {
            let kl = find(verdicts, "KL at 0.28");
            assert_eq!(kl.words(), "not measured: n = 8 of 32");
            assert!(kl.value.is_some() && kl.low.is_some());
        });
        let mut short = repeated(4);
        short.cells.iter_mut().for_each(|cell| cell.length = 100);
        check(&short, 0.0, |verdicts| {
            assert!(find(verdicts, "KL at 0.28").words().contains("a context of 100 tokens"));
        });
    }

    #[test]
    fn needles_in_short_contexts_do_not_count_beside_those_in_long_ones() {
        let mut results = repeated(4);
        for arm in results.arms.iter_mut().filter(|arm| arm.budget == Some(0.28)) {
            arm.budget = Some(0.2);
        }
        let needles = results.cells.iter_mut().find(|cell| cell.task == "needle").unwrap();
        needles.mode = Mode::Agnostic;
        let outcomes = needles.outcomes.clone();
        let needle = "needle minus the full cache's at 0.2";
        check(&results, 0.0, |verdicts| {
            assert!(find(verdicts, needle).words().contains("a context of 100 tokens"));
        });
        let place = Place { mode: Mode::Agnostic, length: LEAST_PREFIX, depth: None };
        outcomes.into_iter().for_each(|outcomes| results.push("needle", place, outcomes));
        check(&results, 0.0, |verdicts| {
            let long = find(verdicts, needle);
            assert_eq!((long.n, long.met), (Some(32), Some(false)));
        });
    }

    #[test]
    fn the_best_baseline_is_not_known_without_all_of_them() {
        check(&repeated(4), 0.0, |verdicts| {
            let ratio = find(verdicts, "KL over the best baseline's at 0.28");
            assert!((ratio.value.unwrap() - 0.25).abs() < 1e-9);
            assert!(ratio.met.is_none() && ratio.words().contains("without uniform_k8v4"));
        });
    }

    #[test]
    fn what_a_run_does_not_have_is_not_measured() {
        check(&repeated(4), 0.0, |verdicts| {
            assert_eq!(verdicts.len(), BARS.len());
            let lines = find(verdicts, "lines minus the full cache's at 0.2");
            assert_eq!((lines.value, lines.met), (None, None));
        });
    }

    #[test]
    fn a_sure_limit_holds_for_the_interval_too() {
        let reading = |high| Reading {
            value: 0.4,
            interval: Some(Interval { low: 0.3, high }),
            n: None,
            lacks: None,
        };
        let limit = Limit::Surely(0.5, 0.7);
        assert!(limit.is_met(&reading(0.6)) && !limit.is_met(&reading(0.8)));
    }
}
