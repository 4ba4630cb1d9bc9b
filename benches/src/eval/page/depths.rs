//! Where in a context something was found.

use std::fmt::Write;

use anyhow::Result;

use crate::eval::{
    bars::POLICY,
    plots::{Grid, share_colour},
    rows::Results,
    tasks::Mode,
};

/// A map for the default policy at each budget and one for the full cache, of every task that hides
/// something at known depths.
pub fn depth_sections(html: &mut String, results: &Results) -> Result<()> {
    for (task, mode) in results.tasks() {
        let shown =
            |arm: &usize| results.arms[*arm].is_full() || results.arms[*arm].name() == POLICY;
        let maps = (0..results.arms.len()).filter(shown);
        let maps = maps.filter_map(|arm| Some((arm, depth_map(results, (task, mode), arm)?)));
        let maps: Vec<_> = maps.collect();
        if maps.is_empty() {
            continue;
        }
        write!(
            html,
            "<h2>{task}, {mode}, by depth</h2><p>Mean score from red (0) to green (1): a column \
             per length, a row per share of the context before what is asked for.</p>\
             <div class=\"maps\">"
        )?;
        for (arm, map) in maps {
            let (name, budget) = (results.arms[arm].name(), results.arms[arm].budget);
            let budget = budget.map(|budget| format!(" at {budget}")).unwrap_or_default();
            write!(
                html,
                "<figure>{}<figcaption>{name}{budget}</figcaption></figure>",
                map.draw(share_colour)?
            )?;
        }
        html.push_str("</div>");
    }
    Ok(())
}

/// `None` without depths.
fn depth_map(results: &Results, (task, mode): (&str, Mode), arm: usize) -> Option<Grid> {
    let cells = results.cells.iter().filter(|cell| (cell.task, cell.mode) == (task, mode));
    let mut grid = Grid { axes: ["length", "depth"], ..Grid::default() };
    for cell in cells {
        let scores = cell.depths.iter().zip(&cell.outcomes);
        let scores =
            scores.filter_map(|(depth, sample)| Some(((*depth)?, sample[arm].as_ref()?.score)));
        let mut scores: Vec<_> = scores.collect();
        // Drawn from the bottom up: the start of the context is at the top.
        scores.sort_by(|a, b| b.0.total_cmp(&a.0));
        if scores.len() >= grid.rows.len() {
            grid.rows = scores.iter().map(|(depth, _)| format!("{:.0} %", 100.0 * depth)).collect();
        }
        grid.columns.push(cell.length.to_string());
        grid.cells.push(scores.into_iter().map(|(_, score)| score).collect());
    }
    (!grid.rows.is_empty()).then_some(grid)
}
