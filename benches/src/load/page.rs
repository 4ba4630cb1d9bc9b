//! `report.html`: one or more runs in one page that asks for nothing else.

use std::fmt::Write;

use anyhow::Result;

use super::arrivals::Load;
use super::compare::{by_load, differences};
use super::plots::{Axes, Line, colour, lines};
use super::report::{COLUMNS, Report, bytes};
use super::stats::{Latency, Summary};
use super::timeline::timeline;
use crate::eval::page::{escape, legend};

const STYLE: &str = include_str!("../eval/page.css");

pub const MIB: f64 = 1024.0 * 1024.0;

/// Two charts side by side where there is room.
const CHARTS: &str = ".charts{display:grid;gap:.5rem;\
     grid-template-columns:repeat(auto-fit,minmax(min(100%,30rem),1fr))}";

/// # Errors
/// None that depends on the data.
pub fn page(reports: &[Report]) -> Result<String> {
    let mut html = String::new();
    let names: Vec<_> = reports.iter().map(|report| escape(&report.name)).collect();
    let title = names.join(" and ");
    write!(
        html,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>Load: {title}</title><style>{STYLE}{CHARTS}</style></head><body><h1>Load: {title}</h1>"
    )?;
    for report in reports {
        run(&mut html, report)?;
    }
    side_by_side(&mut html, reports)?;
    legend(&mut html, reports.iter().map(|report| report.name.as_str()))?;
    curves(&mut html, reports)?;
    percentiles(&mut html, reports)?;
    timeline(&mut html, reports)?;
    definitions(&mut html, &reports[0])?;
    html.push_str("</body></html>\n");
    Ok(html)
}

fn run(html: &mut String, report: &Report) -> Result<()> {
    let Report { name, url, model, endpoint, workload, slos, seed, .. } = report;
    let slos = if slos.is_empty() { "none".into() } else { slos.join(", ") };
    write!(
        html,
        "<h2>{}</h2><p>{} on {}{}. {}. Seed {seed}. SLOs: {}.<br>{}.</p><table><tr>",
        escape(name),
        escape(model),
        escape(url),
        escape(endpoint),
        escape(workload),
        escape(&slos),
        escape(&report.overhead_line())
    )?;
    for (heading, _) in COLUMNS {
        write!(html, "<th>{heading}")?;
    }
    for stage in &report.stages {
        html.push_str("<tr>");
        for (_, cell) in COLUMNS {
            write!(html, "<td>{}", escape(&cell(stage)))?;
        }
    }
    html.push_str("</table>");
    for stage in &report.stages {
        notes(html, stage)?;
    }
    Ok(())
}

/// What a reader has to know about a stage besides its row.
fn notes(html: &mut String, stage: &Summary) -> Result<()> {
    let mut notes = Vec::new();
    if let (Some(held), Some(f16)) = (stage.kv_bytes, stage.kv_f16_bytes) {
        let share = 100.0 * held / f16.max(1.0);
        notes.push(format!(
            "KV cache of a request at its end: {} on average, {share:.0} % of F16",
            bytes(held)
        ));
    }
    if stage.cached_share > 0.0 {
        notes.push(format!(
            "{:.0} % of prompt tokens came from a cache",
            stage.cached_share * 100.0
        ));
    }
    if stage.is_estimate {
        notes.push("some answers had no usage: their tokens are chunks".into());
    }
    if !matches!(stage.load, Load::Concurrency(_)) {
        notes.push(format!("sent late by {:.2} ms (p99)", stage.late.p99));
    }
    notes.extend(stage.scrape_line());
    if let Some(preemptions) = stage.num_preemptions.filter(|num| *num > 0.0) {
        notes.push(format!("{preemptions} preemptions"));
    }
    if stage.num_timeouts > 0 {
        notes.push(format!("{} beyond the deadline", stage.num_timeouts));
    }
    notes.extend(stage.errors.iter().map(|(reason, count)| format!("{count} failed: {reason}")));
    if !notes.is_empty() {
        write!(html, "<p>{}: {}.</p>", stage.load.name(), escape(&notes.join("; ")))?;
    }
    Ok(())
}

/// One point for each stage.
fn curves(html: &mut String, reports: &[Report]) -> Result<()> {
    let chart = |x: fn(&Summary) -> f64, y: fn(&Summary) -> Option<f64>, axes: &Axes| {
        // Open and closed loops are no points of one curve.
        let line = |(index, report): (usize, &Report), is_closed: bool| {
            let of_kind = |s: &&Summary| matches!(s.load, Load::Concurrency(_)) == is_closed;
            let stages = report.stages.iter().filter(of_kind);
            let mut points: Vec<_> = stages.filter_map(|s| Some((x(s), y(s)?))).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Line { name: report.name.clone(), colour: colour(index), points }
        };
        let both = reports.iter().enumerate().flat_map(|run| [line(run, true), line(run, false)]);
        lines(axes, &both.collect::<Vec<_>>())
    };
    let throughput = |stage: &Summary| stage.output_tokens_per_s;
    let (x, x_label, y_label) =
        ("output tokens/s", short as fn(&f64) -> String, short as fn(&f64) -> String);
    html.push_str("<h2>Throughput and latency</h2><p>A point for each stage; closed and open loops are joined apart.</p><div class=\"charts\">");
    for (y, of) in [
        ("TTFT p50, ms", (|s| s.ttft.measured(|l| l.p50)) as fn(&Summary) -> Option<f64>),
        ("TPOT p50, ms", |s| s.tpot.measured(|l| l.p50)),
        ("E2E p99, ms", |s| s.e2e.measured(|l| l.p99)),
    ] {
        html.push_str(&chart(throughput, of, &Axes { x, y, x_label, y_label })?);
    }
    let axes = Axes { x, y: "peak KV, MiB", x_label, y_label };
    html.push_str(&chart(throughput, |stage| Some(stage.peak_kv_bytes? / MIB), &axes)?);
    html.push_str("</div>");
    Ok(())
}

fn percentiles(html: &mut String, reports: &[Report]) -> Result<()> {
    html.push_str("<h2>Latency by percentile</h2>");
    let stages: Vec<_> = reports
        .iter()
        .flat_map(|report| report.stages.iter().map(move |stage| (report, stage)))
        .collect();
    let names: Vec<_> = stages
        .iter()
        .map(|(report, stage)| format!("{}: {}", report.name, stage.load.name()))
        .collect();
    legend(html, names.iter().map(String::as_str))?;
    html.push_str("<div class=\"charts\">");
    for (y, of) in [
        ("TTFT, ms", (|s| &s.ttft) as fn(&Summary) -> &Latency),
        ("ITL, ms", |s| &s.itl),
        ("TPOT, ms", |s| &s.tpot),
        ("E2E, ms", |s| &s.e2e),
    ] {
        let line = |(index, (_, stage)): (usize, &(&Report, &Summary))| Line {
            name: stage.load.name(),
            colour: colour(index),
            points: of(stage).curve.clone(),
        };
        let axes = Axes { x: "percentile", y, x_label: short, y_label: short };
        html.push_str(&lines(&axes, &stages.iter().enumerate().map(line).collect::<Vec<_>>())?);
    }
    html.push_str("</div>");
    Ok(())
}

/// Nothing for a run that is alone.
fn side_by_side(html: &mut String, reports: &[Report]) -> Result<()> {
    let [first, _, ..] = reports else { return Ok(()) };
    write!(html, "<h2>Side by side</h2><p>\u{d7}: as a multiple of {}.</p>", escape(&first.name))?;
    for (load, stages) in by_load(reports) {
        write!(html, "<h3>{}</h3><table>", load.name())?;
        for (nth, row) in differences(reports, &stages).iter().enumerate() {
            let cell = if nth == 0 { "<th>" } else { "<td>" };
            html.push_str("<tr>");
            row.iter().for_each(|text| html.extend([cell, &escape(text)]));
        }
        html.push_str("</table>");
    }
    Ok(())
}

fn definitions(html: &mut String, report: &Report) -> Result<()> {
    html.push_str("<h2>Definitions</h2><dl>");
    for (term, text) in &report.definitions {
        write!(html, "<dt>{}<dd>{}", escape(term), escape(text))?;
    }
    html.push_str("</dl>");
    Ok(())
}

/// To three digits, and no zeros behind them.
pub fn short(value: &f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}").trim_end_matches(".0").to_owned(),
        _ => format!("{value:.2}").trim_end_matches('0').trim_end_matches('.').to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn figures_on_an_axis_are_short_and_none_is_there_twice() {
        let shown: Vec<_> =
            [0.0, 0.5, 0.75, 2.5, 10.0, 12.34, 99.96, 1234.5].iter().map(short).collect();
        assert_eq!(shown, ["0", "0.5", "0.75", "2.5", "10", "12.3", "100", "1234"]);
    }

    #[test]
    fn a_stage_without_a_success_has_no_latency_in_the_charts() {
        let mut failed = report("one");
        let summary = |stage: &Summary| Summary::new(stage.load, &[], vec![], &[]);
        failed.stages = failed.stages.iter().map(summary).collect();
        let mut html = String::new();
        curves(&mut html, &[failed]).unwrap();
        assert_eq!(html.matches("<svg").count(), 0);
    }

    #[test]
    fn the_page_has_every_part_of_both_runs_and_asks_for_nothing() {
        let html = page(&[report("one"), report("<script>two")]).unwrap();
        for part in [
            "peak KV",
            "goodput",
            "TTFT",
            "&lt;m&gt;",
            "Definitions",
            "KV by tier, MiB",
            "Side by side",
            "\u{d7}1.00",
        ] {
            assert!(html.contains(part), "{part}");
        }
        // Four curves and four percentile charts; of each stage four quantities and two runs' tiers.
        assert_eq!(html.matches("<svg").count(), 4 + 4 + 2 * (4 + 2));
        assert!(!page(&[report("one")]).unwrap().contains("Side by side"));
        let own = html.replace("http://www.w3.org/2000/svg", "").replace("http://127.0.0.1:1", "");
        for foreign in ["http://", "https://", "<script", "<link", "<m>", "NaN"] {
            assert!(!own.contains(foreign), "{foreign}");
        }
    }
}
