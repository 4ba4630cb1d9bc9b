//! Runs side by side: the stages of equal load, and every figure with its ratio to the first run's.

use super::arrivals::Load;
use super::report::{Report, bytes, ms};
use super::stats::Summary;

/// A figure's name, what a stage has to say, and how it is shown.
type Figure = (&'static str, fn(&Summary) -> Option<f64>, fn(f64) -> String);

const FIGURES: &[Figure] = &[
    ("req/s", |s| Some(s.requests_per_s), two_digits),
    ("out tok/s", |s| Some(s.output_tokens_per_s), two_digits),
    ("goodput/s", |s| Some(s.goodput), two_digits),
    ("TTFT p50, ms", |s| s.ttft.measured(|l| l.p50), ms),
    ("TTFT p99, ms", |s| s.ttft.measured(|l| l.p99), ms),
    ("ITL p50, ms", |s| s.itl.measured(|l| l.p50), ms),
    ("ITL p99, ms", |s| s.itl.measured(|l| l.p99), ms),
    ("TPOT p50, ms", |s| s.tpot.measured(|l| l.p50), ms),
    ("TPOT p99, ms", |s| s.tpot.measured(|l| l.p99), ms),
    ("E2E p50, ms", |s| s.e2e.measured(|l| l.p50), ms),
    ("E2E p99, ms", |s| s.e2e.measured(|l| l.p99), ms),
    ("KV of a request", |s| s.kv_bytes, bytes),
    ("peak KV", |s| s.peak_kv_bytes, bytes),
    ("peak KV in use, %", |s| s.peak_kv_percent(), |percent| format!("{percent:.0}")),
    ("peak waiting", |s| s.peak_waiting, |num| num.to_string()),
];

fn two_digits(value: f64) -> String {
    format!("{value:.2}")
}

/// Numbers the runs of one name: `keepwell 1`, `keepwell 2`.
pub fn tell_apart(reports: &mut [Report]) {
    let names: Vec<_> = reports.iter().map(|report| report.name.clone()).collect();
    let count = |of: &[String], name: &String| of.iter().filter(|other| *other == name).count();
    for (index, report) in reports.iter_mut().enumerate() {
        if count(&names, &names[index]) > 1 {
            report.name += &format!(" {}", count(&names[..=index], &names[index]));
        }
    }
}

/// By load, in the order they first appear: the stage of each run that has one. Loads that a run has
/// twice are paired in order.
pub fn by_load(reports: &[Report]) -> Vec<(Load, Vec<Option<&Summary>>)> {
    let mut rows: Vec<(Load, Vec<Option<&Summary>>)> = Vec::new();
    for (run, report) in reports.iter().enumerate() {
        for stage in &report.stages {
            let is_free = |(load, row): &&mut (Load, Vec<Option<_>>)| {
                *load == stage.load && row[run].is_none()
            };
            if let Some((_, row)) = rows.iter_mut().find(is_free) {
                row[run] = Some(stage);
                continue;
            }
            let mut row = vec![None; reports.len()];
            row[run] = Some(stage);
            rows.push((stage.load, row));
        }
    }
    rows
}

/// A heading of the runs' names, then a row for each figure that one of them has: `12.0 (×1.50)`.
pub fn differences(reports: &[Report], stages: &[Option<&Summary>]) -> Vec<Vec<String>> {
    let names = reports.iter().map(|report| report.name.clone());
    let row = |(name, of, show): &Figure| {
        let values: Vec<_> = stages.iter().map(|stage| stage.and_then(of)).collect();
        let first = values[0].filter(|first| *first > 0.0);
        let cell = |(run, value): (usize, &Option<f64>)| match (value, first) {
            (None, _) => "-".into(),
            (Some(value), Some(first)) if run > 0 => {
                format!("{} (\u{d7}{:.2})", show(*value), value / first)
            }
            (Some(value), _) => show(*value),
        };
        let cells = values.iter().enumerate().map(cell);
        let row = std::iter::once((*name).to_owned()).chain(cells).collect();
        values.iter().any(Option::is_some).then_some(row)
    };
    let heading = std::iter::once(String::new()).chain(names).collect();
    std::iter::once(heading).chain(FIGURES.iter().filter_map(row)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn stages_of_equal_load_stand_side_by_side_and_others_alone() {
        let (a, mut b) = (report("a"), report("b"));
        b.stages[1].load = Load::Rate(9.0);
        b.stages.push(b.stages[0].clone());
        let reports = [a, b];
        let rows = by_load(&reports);
        let rows: Vec<_> =
            rows.iter().map(|(load, row)| (*load, [row[0].is_some(), row[1].is_some()])).collect();
        let closed = Load::Concurrency(1);
        assert_eq!(
            rows,
            [
                (closed, [true, true]),
                (Load::Rate(2.5), [true, false]),
                (Load::Rate(9.0), [false, true]),
                (closed, [false, true]),
            ]
        );
    }

    #[test]
    fn runs_of_one_name_are_numbered_and_others_keep_theirs() {
        let mut reports = ["a", "b", "a"].map(report);
        tell_apart(&mut reports);
        assert_eq!(reports.map(|report| report.name), ["a 1", "b", "a 2"]);
    }

    #[test]
    fn every_figure_stands_beside_its_ratio_to_the_first_run() {
        let (a, mut b) = (report("a"), report("b"));
        b.stages[0].requests_per_s = a.stages[0].requests_per_s * 1.5;
        b.stages[0].kv_bytes = Some(1024.0);
        let reports = [a, b];
        let rows = differences(&reports, &by_load(&reports)[0].1);
        let row = |name: &str| rows.iter().find(|row| row[0] == name).unwrap();
        assert_eq!(rows[0], ["", "a", "b"]);
        assert!(row("req/s")[2].ends_with(" (\u{d7}1.50)"), "{rows:?}");
        assert_eq!(row("KV of a request")[1..], ["-", "1.0 KiB"]);
        assert_eq!(row("TTFT p50, ms")[2], "100 (\u{d7}1.00)");
    }
}
