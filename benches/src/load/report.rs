//! A run as a file, and as a table on the terminal.

use std::path::Path;

use anyhow::{Context, Result};
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::overhead::Overhead;
use super::stats::{DEFINITIONS, Summary};

/// `report.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    pub name: String,
    pub url: String,
    pub model: String,
    pub endpoint: String,
    /// What was asked, in words.
    pub workload: String,
    pub slos: Vec<String>,
    pub seed: u64,
    /// Unix seconds.
    pub began: u64,
    /// Of the load tester itself.
    pub overhead: Overhead,
    pub definitions: Vec<(String, String)>,
    pub stages: Vec<Summary>,
}

impl Report {
    /// # Errors
    /// No such file, or not one of ours.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no report", path.display()))
    }

    pub fn definitions() -> Vec<(String, String)> {
        DEFINITIONS.iter().map(|(term, text)| ((*term).into(), (*text).into())).collect()
    }

    pub fn overhead_line(&self) -> String {
        let Overhead { requests_per_s, ttft_p50, ttft_p99, e2e_p50 } = &self.overhead;
        format!(
            "load tester's own share, with progress and scrapes, against a stub in its process: TTFT \
             {ttft_p50:.2} ms (p99 {ttft_p99:.2}), E2E {e2e_p50:.2} ms, at most {requests_per_s:.0} \
             requests/s"
        )
    }
}

type Column = (&'static str, fn(&Summary) -> String);

/// The columns of the table, here and in the HTML: a heading and what a stage has to say.
pub const COLUMNS: &[Column] = &[
    ("load", |s| s.load.name()),
    ("ok", |s| s.num_ok.to_string()),
    ("failed", |s| (s.num_errors() + s.num_timeouts).to_string()),
    ("req/s", |s| format!("{:.2}", s.requests_per_s)),
    ("in tok/s", |s| format!("{:.0}", s.prompt_tokens_per_s)),
    ("out tok/s", |s| format!("{:.0}", s.output_tokens_per_s)),
    ("goodput/s", |s| format!("{:.2} ({:.0} %)", s.goodput, s.goodput_share * 100.0)),
    ("TTFT p50", |s| ms(s.ttft.p50)),
    ("p99", |s| ms(s.ttft.p99)),
    ("ITL p50", |s| ms(s.itl.p50)),
    ("p99", |s| ms(s.itl.p99)),
    ("TPOT p50", |s| ms(s.tpot.p50)),
    ("p99", |s| ms(s.tpot.p99)),
    ("E2E p50", |s| ms(s.e2e.p50)),
    ("p99", |s| ms(s.e2e.p99)),
    ("peak KV", |s| s.peak_kv_bytes.map_or("-".into(), bytes)),
];

pub fn ms(ms: f64) -> String {
    match ms {
        0.0 => "-".into(),
        ms if ms < 10.0 => format!("{ms:.2}"),
        ms if ms < 100.0 => format!("{ms:.1}"),
        ms => format!("{ms:.0}"),
    }
}

pub fn bytes(bytes: f64) -> String {
    ByteSize(bytes as u64).display().iec().to_string()
}

/// For the terminal; times in milliseconds.
pub fn table(stages: &[Summary]) -> String {
    let headings = COLUMNS.iter().map(|(heading, _)| (*heading).to_owned()).collect();
    let row = |stage| COLUMNS.iter().map(|(_, of)| of(stage)).collect();
    aligned(&[vec![headings], stages.iter().map(row).collect()].concat())
}

/// Lines of cells in columns, the first to the left.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<_> = (0..rows[0].len()).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, &width))| match column {
            0 => format!("{cell:width$}"),
            _ => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ")
    };
    rows.iter().map(|row| line(row) + "\n").collect()
}

#[cfg(test)]
pub mod tests {
    use super::super::arrivals::Load;
    use super::super::record::Record;
    use super::super::scrape::Scrape;
    use super::*;

    pub fn report(name: &str) -> Report {
        let record = |nth: usize| Record {
            sent: nth as f64,
            ttft: Some(0.1),
            gaps: vec![0.02; 4],
            e2e: 0.18,
            prompt_tokens: 30,
            output_tokens: 5,
            ..Record::default()
        };
        let records: Vec<_> = (0..4).map(record).collect();
        let scrape = |at: f64| Scrape {
            at,
            running: 2.0,
            waiting: at,
            kv_bytes: [("f16".to_owned(), 1e6 * at), ("k4v4".to_owned(), 5e5)].into(),
            ..Scrape::default()
        };
        let series: Vec<_> = (0..4).map(|at| scrape(f64::from(at))).collect();
        let stage = |load| Summary::new(load, &records, series.clone(), &[]);
        Report {
            name: name.into(),
            url: "http://127.0.0.1:1".into(),
            model: "<m>".into(),
            endpoint: "/v1/completions".into(),
            workload: "some".into(),
            slos: vec!["ttft at most 500 ms".into()],
            seed: 1,
            began: 0,
            overhead: Overhead::default(),
            definitions: Report::definitions(),
            stages: vec![stage(Load::Concurrency(1)), stage(Load::Rate(2.5))],
        }
    }

    #[test]
    fn a_report_comes_back_from_its_file_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        let written = report("a");
        std::fs::write(&path, serde_json::to_string(&written).unwrap()).unwrap();
        let read = Report::read(&path).unwrap();
        assert_eq!(table(&read.stages), table(&written.stages));
        assert_eq!((read.name, read.definitions), (written.name, written.definitions));
        assert_eq!(read.stages[0].series, written.stages[0].series);
        std::fs::write(&path, "{}").unwrap();
        assert!(format!("{:#}", Report::read(&path).unwrap_err()).contains("is no report"));
    }

    #[test]
    fn the_table_has_a_line_for_each_stage_and_all_are_as_long() {
        let table = table(&report("a").stages);
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{table}");
        assert!(lines[1].contains("closed loop") && lines[2].contains("2.5/s"), "{table}");
    }
}
