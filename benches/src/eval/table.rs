//! Results on the terminal.

use super::{compare::Comparison, rows::Results};

pub fn print(results: &Results, comparisons: &[Comparison]) {
    for (task, mode) in results.tasks() {
        let cells = results.cells.iter().filter(|c| (c.task, c.mode) == (task, mode));
        let lengths: Vec<_> = cells.map(|c| c.length.to_string()).collect();
        println!("\n{task}, {mode}, length {}", lengths.join(", "));
        print_task(results, task, mode);
    }
    print_comparisons(comparisons);
}

fn print_task(results: &Results, task: &'static str, mode: super::tasks::Mode) {
    let mut outcomes =
        results.arms_in(task, mode).flat_map(|arm| results.outcomes(task, mode, arm));
    let is_kl = outcomes.any(|outcome| !outcome.kls.is_empty());
    print!("{:16} {:>7} {:>7} {:>4}", "policy", "budget", "bytes", "n");
    match is_kl {
        true => println!(
            "  {:>8} {:>19}  {:>8} {:>8}  {:>6} {:>8}",
            "KL", "95 %", "p99", "p99.9", "top-1", "dNLL"
        ),
        false => println!("  {:>6} {:>15}", "score", "95 %"),
    }
    for arm in results.arms_in(task, mode) {
        let row = results.row((task, mode), 0, arm, &results.outcomes(task, mode, arm));
        print!("{:16} {:7.3} {:7.4} {:4}", row.policy, row.budget, row.bytes_ratio, row.n);
        match (row.kl_mean, row.kl_p99, row.kl_p999, row.nll_delta) {
            (Some(kl), Some(p99), Some(p999), Some(nll)) => println!(
                "  {kl:8.5} ({:8.5} -{:8.5})  {p99:8.4} {p999:8.4}  {:6.3} {nll:+8.4}",
                row.ci_low, row.ci_high, row.score
            ),
            _ => println!("  {:6.3} ({:5.3} - {:5.3})", row.score, row.ci_low, row.ci_high),
        }
    }
}

fn print_comparisons(comparisons: &[Comparison]) {
    if comparisons.is_empty() {
        return;
    }
    println!("\nAgainst the best baseline at equal or more bytes, paired");
    comparisons.iter().filter(|c| c.is_best).for_each(print_comparison);
    println!("\nAgainst the full cache, paired");
    comparisons.iter().filter(|c| c.is_to_full()).for_each(print_comparison);
}

fn print_comparison(c: &Comparison) {
    let Comparison { policy, budget, baseline, effect, low, high, .. } = c;
    let kind = if c.is_ratio() { "ratio of KL" } else { "difference " };
    println!(
        "{:9} {:8}  {policy:14} {budget:<6} {:8.5}  {baseline:13} at {:.3} {:8.5}  {kind} \
         {effect:6.3} ({low:.3} - {high:.3})",
        c.task, c.mode, c.value, c.baseline_bytes_ratio, c.baseline_value
    );
}
