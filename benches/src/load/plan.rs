//! Which sessions the warm-up and each stage ask.

use std::time::Duration;

use super::arrivals::Load;
use super::drive::Stage;
use super::workload::Workload;

/// The first made-up session of the warm-up: none of a stage's.
const WARM_UP: usize = 1 << 40;
/// Sessions of a stage, unless asked otherwise.
const NUM_SESSIONS: usize = 64;

/// One stage for each load; each goes on in the dataset of `num_lines` where the one before ended,
/// and begins anew when that is used up. Without a dataset sessions are made up and never end.
///
/// A trace is played as a whole unless `num` says less, and never across the dataset's end, behind
/// which its times begin again.
pub fn stages(
    loads: &[Load],
    num: Option<usize>,
    time: Option<Duration>,
    num_lines: usize,
) -> Vec<Stage> {
    let mut next = 0;
    let stage = |load: &Load| {
        let is_trace = *load == Load::Trace;
        let num_sessions = match is_trace {
            true => num.unwrap_or(num_lines).min(num_lines),
            false => num.unwrap_or(NUM_SESSIONS),
        };
        if is_trace && next % num_lines + num_sessions > num_lines {
            next = next.next_multiple_of(num_lines);
        }
        let first_session = next;
        next += num_sessions;
        Stage { load: *load, num_sessions, time, first_session }
    };
    loads.iter().map(stage).collect()
}

/// Behind the last session that is measured.
fn end(stages: &[Stage]) -> usize {
    stages.last().map_or(0, |stage| stage.first_session + stage.num_sessions)
}

/// What a reader has to know when the dataset is too short for all stages.
pub fn repeats(stages: &[Stage], num_lines: usize) -> Option<String> {
    (num_lines > 0 && end(stages) > num_lines).then(|| {
        format!(
            "the dataset has only {num_lines} lines: later stages ask again what earlier ones did, \
             which a prefix cache may hold"
        )
    })
}

/// The warm-up's requests are none that is measured, or a prefix cache would be: lines behind those
/// of the stages where the dataset has enough, made up ones otherwise.
pub fn warm_up(workload: &Workload, stages: &[Stage], num: usize) -> (Workload, Stage) {
    let has_more = end(stages) + num <= workload.dataset.len();
    let first_session = if has_more { end(stages) } else { WARM_UP };
    let dataset = if has_more { workload.dataset.clone() } else { vec![] };
    let load = Load::Concurrency(num.clamp(1, 4));
    let stage = Stage { load, num_sessions: num, time: None, first_session };
    (Workload { dataset, ..workload.clone() }, stage)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{line, workload};
    use super::*;

    fn spans(loads: &[Load], num: Option<usize>, num_lines: usize) -> Vec<(usize, usize)> {
        let stages = stages(loads, num, None, num_lines);
        stages.iter().map(|stage| (stage.first_session, stage.num_sessions)).collect()
    }

    #[test]
    fn a_trace_is_played_as_a_whole_unless_less_is_asked_for() {
        assert_eq!(spans(&[Load::Trace], None, 200), [(0, 200)]);
        assert_eq!(spans(&[Load::Trace], Some(300), 200), [(0, 200)]);
        assert_eq!(spans(&[Load::Trace; 2], Some(50), 200), [(0, 50), (50, 50)]);
        assert_eq!(spans(&[Load::Rate(1.0); 2], None, 0), [(0, 64), (64, 64)]);
    }

    #[test]
    fn a_trace_that_does_not_fit_before_the_datasets_end_begins_it_anew() {
        let loads = [Load::Concurrency(1), Load::Trace];
        assert_eq!(spans(&loads, None, 100), [(0, 64), (100, 100)]);
        assert_eq!(spans(&loads, Some(60), 100), [(0, 60), (100, 60)]);
    }

    #[test]
    fn a_dataset_that_is_too_short_for_all_stages_is_told_of() {
        let stages = stages(&[Load::Concurrency(1), Load::Concurrency(4)], Some(50), None, 99);
        assert!(repeats(&stages, 99).is_some_and(|warning| warning.contains("only 99 lines")));
        // Enough, and made up ones.
        assert!(repeats(&stages, 100).is_none() && repeats(&stages, 0).is_none());
    }

    #[test]
    fn the_warm_up_asks_nothing_that_is_measured() {
        let lines: Vec<_> = (0..10).map(|nth| line(&format!("line {nth}"), 0)).collect();
        let workload = Workload { dataset: lines.clone(), ..workload() };
        let asked = |num_measured| {
            let stages = stages(&[Load::Concurrency(1)], Some(num_measured), None, lines.len());
            let (workload, stage) = warm_up(&workload, &stages, 4);
            let sessions = stage.first_session..stage.first_session + stage.num_sessions;
            sessions.map(|index| workload.session(index)).collect::<Vec<_>>()
        };
        assert_eq!(asked(6), lines[6..]);
        assert!(asked(7).iter().all(|session| !lines.contains(session)));
    }
}
