//! Bars, and what compression itself takes.

use std::fmt::Write;

use anyhow::Result;

use super::escape;
use crate::eval::{bars::Verdict, overhead::Overhead};

pub fn bars_section(html: &mut String, verdicts: &[Verdict]) -> Result<()> {
    html.push_str("<h2>Bars</h2><table><tr><th>bar<th>value (95 %)<th>n<th>verdict</tr>");
    for verdict in verdicts {
        let n = verdict.n.map(|n| n.to_string()).unwrap_or_default();
        write!(
            html,
            "<tr><td>{}<td>{}<td>{n}<td>{}</tr>",
            escape(&verdict.bar),
            verdict.figures(),
            escape(&verdict.words())
        )?;
    }
    html.push_str("</table>");
    Ok(())
}

pub fn overhead_section(html: &mut String, overhead: &Overhead) -> Result<()> {
    write!(
        html,
        "<h2>What compression itself takes at budget {}</h2><table><tr><th><th>tokens<th>seconds\
         <th>share",
        overhead.budget
    )?;
    for (name, _) in overhead.prefill.parts() {
        write!(html, "<th>{name}")?;
    }
    html.push_str("</tr>");
    for (what, share) in [("prefill", overhead.prefill), ("decode", overhead.decode)] {
        write!(html, "<tr><td>{what}<td>{}<td>{:.3}", share.tokens, share.seconds)?;
        for part in [share.share].into_iter().chain(share.parts().map(|(_, part)| part)) {
            write!(html, "<td>{:.2} %", 100.0 * part)?;
        }
        html.push_str("</tr>");
    }
    html.push_str("</table>");
    Ok(())
}
