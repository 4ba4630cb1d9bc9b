//! `index.html`: one file, readable on light and on dark ground, that asks nothing of a network.

mod bars;
mod depths;

use std::fmt::Write;

use anyhow::Result;
use keepwell_kernels::TIERS;
use plotters::style::RGBColor;

use super::{
    bars::Verdict,
    compare::Comparison,
    conditions::Conditions,
    overhead::Overhead,
    plots::{Grid, Scale, Series, bits_colour, colour, quality},
    rows::{Results, Row},
    snapshot::{Snapshot, Token},
    tasks::Mode,
};

use self::{
    bars::{bars_section, overhead_section},
    depths::depth_sections,
};

const STYLE: &str = include_str!("page.css");
/// Levels of a token's score in the text view.
const SCORE_LEVELS: usize = 5;

pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// What the page shows.
#[derive(Clone, Copy)]
pub struct Findings<'a> {
    pub results: &'a Results,
    pub comparisons: &'a [Comparison],
    pub verdicts: &'a [Verdict],
    pub overhead: &'a Overhead,
    pub conditions: &'a Conditions,
    pub snapshots: &'a [Snapshot],
}

/// The whole page.
///
/// # Errors
/// A drawing that fails.
pub fn page(findings: &Findings) -> Result<String> {
    let Findings { results, comparisons, verdicts, overhead, conditions, snapshots } = *findings;
    let mut html = String::new();
    let model = escape(&results.model);
    write!(
        html,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>Keepwell eval: {model}</title><style>{STYLE}</style></head><body>\
         <h1>What compression costs and buys: {model}</h1>\
         <p>Seed {}. Bytes are shares of what the same tokens take in F16. Those of the server's \
         policies (full lines) are the ledger's: pages with metadata and slack. Those of simulated \
         methods (dashed) follow the formula of each format, without page slack. All see the same \
         samples and keep the first 4 and last 64 tokens, simulated methods in F16. Bands are 95 % \
         bootstrap intervals.</p><p>{}</p>",
        results.seed,
        escape(&conditions.words())
    )?;
    legend(&mut html, names(results).into_iter())?;
    for (task, mode) in results.tasks() {
        task_section(&mut html, results, task, mode)?;
    }
    depth_sections(&mut html, results)?;
    comparison_sections(&mut html, comparisons)?;
    bars_section(&mut html, verdicts)?;
    overhead_section(&mut html, overhead)?;
    snapshot_sections(&mut html, snapshots)?;
    html.push_str("</body></html>\n");
    Ok(html)
}

/// Names in the order of the arms: an index is a colour.
fn names(results: &Results) -> Vec<&'static str> {
    let mut names = Vec::new();
    for arm in &results.arms {
        let name = arm.family().unwrap_or(arm.name());
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// One entry for each name, in the colours of the lines.
pub fn legend<'a>(html: &mut String, names: impl Iterator<Item = &'a str>) -> Result<()> {
    keys(html, names.enumerate().map(|(index, name)| (name, colour(index))))
}

/// One entry for each name, in its colour.
pub fn keys<'a>(
    html: &mut String,
    entries: impl Iterator<Item = (&'a str, RGBColor)>,
) -> Result<()> {
    html.push_str("<p class=\"legend\">");
    for (name, c) in entries {
        let name = escape(name);
        write!(
            html,
            "<span><i style=\"background:rgb({},{},{})\"></i>{name}</span> ",
            c.0, c.1, c.2
        )?;
    }
    html.push_str("</p>");
    Ok(())
}

fn task_section(
    html: &mut String,
    results: &Results,
    task: &'static str,
    mode: Mode,
) -> Result<()> {
    let row = |arm: usize| {
        let outcomes = results.outcomes(task, mode, arm);
        results.row((task, mode), 0, arm, &outcomes)
    };
    let arms: Vec<_> = results.arms_in(task, mode).map(|arm| &results.arms[arm]).collect();
    let rows: Vec<Row> = results.arms_in(task, mode).map(row).collect();
    let is_kl = rows.iter().any(|row| row.kl_mean.is_some());
    let series = |(index, name): (usize, &&str)| {
        let ours =
            arms.iter().zip(&rows).filter(|(arm, _)| arm.family().unwrap_or(arm.name()) == *name);
        let mut is_dashed = false;
        let mut points: Vec<_> = ours
            .map(|(arm, row)| {
                is_dashed = !arm.is_policy();
                [row.bytes_ratio, row.kl_mean.unwrap_or(row.score), row.ci_low, row.ci_high]
            })
            .collect();
        points.sort_by(|a, b| a[0].total_cmp(&b[0]));
        Series { colour: colour(index), is_dashed, points }
    };
    let names = names(results);
    // The exact cache has no divergence: on a logarithmic axis it would only squeeze the others.
    let shown = names.iter().enumerate().filter(|(_, name)| !is_kl || **name != "full");
    let series: Vec<_> = shown.map(series).filter(|series| !series.points.is_empty()).collect();
    let (scale, title) = match is_kl {
        true => (Scale::Divergence, "mean KL to the full cache"),
        false => (Scale::Score, "score"),
    };
    write!(html, "<h2>{task}, {mode}</h2>{}", quality(&series, scale, title)?)?;
    table(html, &rows, is_kl)
}

fn table(html: &mut String, rows: &[Row], is_kl: bool) -> Result<()> {
    html.push_str(
        "<details><summary>figures</summary><table><tr><th>policy<th>budget<th>bytes<th>n",
    );
    html.push_str(match is_kl {
        true => "<th>KL<th>95 %<th>p99<th>p99.9<th>top-1<th>\u{394}NLL</tr>",
        false => "<th>score<th>95 %</tr>",
    });
    for row in rows {
        let Row { policy, budget, bytes_ratio, n, score, ci_low, ci_high, .. } = row;
        write!(html, "<tr><td>{policy}<td>{budget:.3}<td>{bytes_ratio:.4}<td>{n}")?;
        match (row.kl_mean, row.kl_p99, row.kl_p999, row.nll_delta) {
            (Some(kl), Some(p99), Some(p999), Some(nll)) => write!(
                html,
                "<td>{kl:.5}<td>{ci_low:.5} \u{2013} {ci_high:.5}<td>{p99:.4}<td>{p999:.4}\
                 <td>{score:.3}<td>{nll:+.4}</tr>"
            )?,
            _ => write!(html, "<td>{score:.3}<td>{ci_low:.3} \u{2013} {ci_high:.3}</tr>")?,
        }
    }
    html.push_str("</table></details>");
    Ok(())
}

fn comparison_sections(html: &mut String, comparisons: &[Comparison]) -> Result<()> {
    comparison_table(
        html,
        "<h2>Against the best baseline at equal or more bytes</h2><p>Each family of methods enters \
         with its smallest format that takes at least the policy's bytes (1 % less counts as equal, \
         1.5 times as many is the most). kl: ratio of the means, below 1 is better; others: \
         difference of the scores, above 0 is better. Intervals are paired. All rivals are in \
         comparisons.json.</p>",
        comparisons.iter().filter(|c| c.is_best),
    )?;
    comparison_table(
        html,
        "<h2>Against the full cache</h2><p>Difference of the scores. Intervals are paired.</p>",
        comparisons.iter().filter(|c| c.is_to_full()),
    )
}

fn comparison_table<'a>(
    html: &mut String,
    title: &str,
    comparisons: impl Iterator<Item = &'a Comparison>,
) -> Result<()> {
    let mut comparisons = comparisons.peekable();
    if comparisons.peek().is_none() {
        return Ok(());
    }
    html.push_str(title);
    html.push_str(
        "<table><tr><th>task<th>mode<th>policy<th>budget<th>bytes<th>value<th>against<th>bytes\
         <th>value<th>effect<th>95 %</tr>",
    );
    for c in comparisons {
        write!(
            html,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{:.4}<td>{:.5}<td>{}<td>{:.4}<td>{:.5}<td>{:.3}\
             <td>{:.3} \u{2013} {:.3}</tr>",
            c.task,
            c.mode,
            c.policy,
            c.budget,
            c.bytes_ratio,
            c.value,
            c.baseline,
            c.baseline_bytes_ratio,
            c.baseline_value,
            c.effect,
            c.low,
            c.high
        )?;
    }
    html.push_str("</table>");
    Ok(())
}

fn snapshot_sections(html: &mut String, snapshots: &[Snapshot]) -> Result<()> {
    let Some(first) = snapshots.first() else { return Ok(()) };
    html.push_str(
        "<h2>Bits by layer and head</h2><p>Mean bits of a value of K or V over the first \
         sample's tokens, evicted ones counting 0. ",
    );
    bits_legend(html)?;
    html.push_str("</p><div class=\"maps\">");
    for snapshot in snapshots {
        let Snapshot { policy, budget, bits, .. } = snapshot;
        write!(
            html,
            "<figure>{}<figcaption>{policy} at {budget}</figcaption></figure>",
            head_grid(bits).draw(bits_colour)?
        )?;
    }
    html.push_str(
        "</div><h2>Bits by token</h2><p>The same context, each token in the colour of its mean bits \
         over all heads; the thicker the line under it, the higher its score among the tokens. Point \
         at a token for its tiers.</p>",
    );
    for snapshot in snapshots.iter().filter(|s| s.policy == first.policy) {
        text_view(html, snapshot)?;
    }
    Ok(())
}

/// Of `bits[layer][kv_head]`: a column per layer, a row per head.
fn head_grid(bits: &[Vec<f64>]) -> Grid {
    let numbers = |len: usize| (0..len).map(|index| index.to_string()).collect();
    Grid {
        axes: ["layer", "head"],
        columns: numbers(bits.len()),
        rows: numbers(bits.first().map_or(0, Vec::len)),
        cells: bits.to_vec(),
    }
}

fn bits_legend(html: &mut String) -> Result<()> {
    for bits in [0, 1, 2, 3, 4, 6, 8, 12, 16] {
        let c = bits_colour(f64::from(bits));
        write!(
            html,
            "<span class=\"key\" style=\"background:rgb({},{},{})\">{bits}</span>",
            c.0, c.1, c.2
        )?;
    }
    Ok(())
}

fn text_view(html: &mut String, snapshot: &Snapshot) -> Result<()> {
    let Snapshot { policy, budget, tokens, .. } = snapshot;
    let mut scores: Vec<f64> = tokens.iter().map(|token| token.score).collect();
    scores.sort_by(f64::total_cmp);
    write!(html, "<details><summary>{policy} at {budget}</summary><p class=\"text\">")?;
    for token in tokens {
        let rank = scores.partition_point(|score| *score < token.score);
        let level = rank * SCORE_LEVELS / scores.len();
        let c = bits_colour(token.bits);
        write!(
            html,
            "<span class=\"s{level}\" style=\"--c:{},{},{}\" title=\"{}\">{}</span>",
            c.0,
            c.1,
            c.2,
            escape(&tooltip(token)),
            escape(&token.text)
        )?;
    }
    html.push_str("</p></details>");
    Ok(())
}

fn tooltip(token: &Token) -> String {
    let mut text = format!("{:.1} bits, score {:.2}:", token.bits, token.score);
    for (tier, heads) in TIERS.iter().zip(&token.tiers).filter(|(_, heads)| **heads > 0) {
        text.push_str(&format!(" {} {heads}", tier.name));
    }
    if token.evicted > 0 {
        text.push_str(&format!(" evicted {}", token.evicted));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::{
        bars::{Run, verdicts},
        compare::comparisons,
        conditions::tests::conditions,
        rows::tests::results,
    };

    #[test]
    fn text_cannot_leave_its_place() {
        assert_eq!(escape("<script>'\"&"), "&lt;script&gt;&#39;&quot;&amp;");
    }

    #[test]
    fn the_page_has_every_part_and_asks_for_nothing() {
        let results = Results { model: "<b>m</b>".into(), ..results() };
        let token = Token { text: "<script>".into(), evicted: 2, ..Token::default() };
        let snapshot = Snapshot {
            policy: "attribution",
            budget: 0.28,
            tokens: vec![token],
            bits: vec![vec![4.0, 8.0]],
        };
        let (comparisons, overhead) = (comparisons(&results), Overhead::of_share(0.05));
        let conditions = conditions(Some(41.0));
        let run = Run {
            results: &results,
            comparisons: &comparisons,
            overhead: &overhead,
            conditions: &conditions,
        };
        let findings = Findings {
            results: &results,
            comparisons: &comparisons,
            verdicts: &verdicts(&run),
            overhead: &overhead,
            conditions: &conditions,
            snapshots: &[snapshot],
        };
        let html = page(&findings).unwrap();
        for part in [
            "<h2>kl, agnostic",
            "<h2>needle, aware",
            "best baseline",
            "Against the full cache",
            "not measured",
            "compacting",
            "measured in 41 s",
            "by depth",
            "Bits by token",
        ] {
            assert!(html.contains(part), "{part}");
        }
        assert!(html.matches("<svg").count() >= 3);
        let own = html.replace("http://www.w3.org/2000/svg", "");
        for foreign in ["http://", "https://", "<script", "<link", "<b>m"] {
            assert!(!own.contains(foreign), "{foreign}");
        }
    }
}
