//! What the servers said of themselves while under load, run over run.

use std::fmt::Write;

use anyhow::Result;
use keepwell_kernels::{PageLayout, TIERS};
use plotters::style::RGBColor;

use super::compare::by_load;
use super::page::{MIB, short};
use super::plots::{Axes, Line, bits_colour, colour, lines, stacked};
use super::report::Report;
use super::scrape::Scrape;
use crate::eval::page::{escape, keys, legend};

type Quantity = (&'static str, fn(&Scrape) -> Option<f64>);

const QUANTITIES: [Quantity; 4] = [
    // Other servers say nothing of bytes.
    ("KV, MiB", |s| (!s.kv_bytes.is_empty()).then(|| s.live_bytes() / MIB)),
    ("KV in use, %", |s| Some(100.0 * s.kv_usage)),
    ("running", |s| Some(s.running)),
    ("waiting", |s| Some(s.waiting)),
];

/// For each load a chart of every quantity, with a line for each run; then what each run held by
/// tier, for areas cannot lie over each other.
pub fn timeline(html: &mut String, reports: &[Report]) -> Result<()> {
    for (load, stages) in by_load(reports) {
        let runs = reports.iter().zip(&stages).enumerate();
        let series: Vec<(usize, &str, &[Scrape])> = runs
            .filter_map(|(run, (report, stage))| Some((run, &*report.name, &*(*stage)?.series)))
            .filter(|(.., series)| series.len() > 1)
            .collect();
        if series.is_empty() {
            continue;
        }
        write!(html, "<h2>{}: the server</h2>", load.name())?;
        legend(html, reports.iter().map(|report| report.name.as_str()))?;
        html.push_str("<div class=\"charts\">");
        for (y, of) in QUANTITIES {
            let line = |(run, name, series): &(usize, &str, &[Scrape])| Line {
                name: (*name).to_owned(),
                colour: colour(*run),
                points: series.iter().filter_map(|s| Some((s.at, of(s)?))).collect(),
            };
            html.push_str(&lines(&axes(y), &series.iter().map(line).collect::<Vec<_>>())?);
        }
        for (_, name, series) in series {
            by_tier(html, name, series)?;
        }
        html.push_str("</div>");
    }
    Ok(())
}

fn by_tier(html: &mut String, name: &str, series: &[Scrape]) -> Result<()> {
    let mut tiers: Vec<&String> = series.iter().flat_map(|s| s.kv_bytes.keys()).collect();
    tiers.sort_by(|a, b| tier_bits(a).total_cmp(&tier_bits(b)).then(a.cmp(b)));
    tiers.dedup();
    tiers.retain(|tier| series.iter().any(|s| s.kv_bytes.get(*tier).is_some_and(|b| *b > 0.0)));
    if tiers.is_empty() {
        return Ok(());
    }
    let area = |tier: &&String| {
        let bytes = |s: &Scrape| s.kv_bytes.get(*tier).copied().unwrap_or(0.0);
        let points = series.iter().map(|s| (s.at, bytes(s) / MIB)).collect();
        Line { name: (*tier).clone(), colour: tier_colour(tier), points }
    };
    let areas: Vec<_> = tiers.iter().map(area).collect();
    write!(html, "<div><p>{}</p>", escape(name))?;
    keys(html, areas.iter().map(|area| (area.name.as_str(), area.colour)))?;
    html.push_str(&stacked(&axes("KV by tier, MiB"), &areas)?);
    html.push_str("</div>");
    Ok(())
}

fn axes(y: &'static str) -> Axes<'static> {
    Axes { x: "seconds", y, x_label: short, y_label: short }
}

/// Bits of a value in a tier of this name, metadata included; what is no name of ours counts as
/// uncompressed.
fn tier_bits(name: &str) -> f64 {
    const CHANNELS: usize = 64;
    let info = TIERS.iter().find(|info| info.name == name);
    let bytes = |tier| PageLayout::new(CHANNELS).token_bytes(tier);
    info.map_or(16.0, |info| (bytes(info.tier) * 8) as f64 / (2 * CHANNELS) as f64)
}

fn tier_colour(name: &str) -> RGBColor {
    bits_colour(tier_bits(name))
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    fn html(reports: &[Report]) -> String {
        let mut html = String::new();
        timeline(&mut html, reports).unwrap();
        html
    }

    #[test]
    fn the_names_of_the_tiers_stand_beside_the_colours_of_their_areas() {
        let html = html(&[report("one")]);
        for tier in ["f16", "k4v4"] {
            let c = tier_colour(tier);
            let key = format!("rgb({},{},{})\"></i>{tier}</span>", c.0, c.1, c.2);
            assert!(html.contains(&key), "{tier}");
        }
    }

    #[test]
    fn runs_lie_over_each_other_in_one_chart_of_each_quantity() {
        let (one, mut two) = (report("one"), report("two"));
        // A server without metrics, in one of the stages.
        two.stages[1].series.clear();
        let both = html(&[one, two]);
        let charts: Vec<_> = both.split("<svg").skip(1).collect();
        // Four quantities and areas of both runs in the first stage, of one in the second.
        assert_eq!(charts.len(), (4 + 2) + (4 + 1));
        let is_in = |chart: &str, run| {
            let c = colour(run);
            chart.contains(&format!("stroke=\"#{:02X}{:02X}{:02X}\"", c.0, c.1, c.2))
        };
        let num_lines = |chart: &&str| usize::from(is_in(chart, 0)) + usize::from(is_in(chart, 1));
        let num: Vec<_> = charts.iter().map(num_lines).collect();
        assert_eq!(num, [2, 2, 2, 2, 0, 0, 1, 1, 1, 1, 0]);
    }

    #[test]
    fn a_server_that_says_nothing_of_bytes_has_a_chart_of_its_cache() {
        let mut other = report("other");
        for stage in &mut other.stages {
            stage.series.iter_mut().for_each(|scrape| scrape.kv_bytes.clear());
        }
        let html = html(&[other]);
        assert!(html.contains("KV in use, %") && !html.contains("KV, MiB"));
        assert_eq!(html.matches("<svg").count(), 2 * 3);
    }
}
