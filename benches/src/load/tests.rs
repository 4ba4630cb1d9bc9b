//! Whole runs against the stub.

use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tokio::sync::mpsc;

use super::Arguments;
use super::arrivals::Load;
use super::client::{Client, Endpoint};
use super::drive::{self, Stage};
use super::lengths::Lengths;
use super::record::{KvCache, Outcome, Record};
use super::stats::Summary;
use super::stub::{Pace, start};
use super::workload::{Session, Turn, Workload, message};

const PACE: Pace =
    Pace { before_first: Duration::from_millis(40), between: Duration::from_millis(10) };

fn client(endpoint: Endpoint, pace: Pace) -> Client {
    let address = start(pace).unwrap();
    let mut client = Client::new(&format!("http://{address}/v1/"), endpoint, None).unwrap();
    client.deadline = Duration::from_secs(5);
    client
}

pub fn workload() -> Workload {
    Workload {
        seed: 1,
        prompt_tokens: Lengths::Fixed(20),
        output_tokens: Lengths::Fixed(5),
        prefix_tokens: 0,
        prefix_groups: 1,
        turns: 1,
        dataset: vec![],
    }
}

/// A line of a dataset.
pub fn line(text: &str, ms: u32) -> Session {
    let turns = vec![Turn { text: text.into(), max_tokens: 2 }];
    Session { at: Some(f64::from(ms) / 1e3), history: vec![], turns }
}

async fn run(client: Client, workload: Workload, load: Load, num_sessions: usize) -> Vec<Record> {
    play(client, workload, &Stage { load, num_sessions, time: None, first_session: 0 }).await
}

async fn play(client: Client, workload: Workload, stage: &Stage) -> Vec<Record> {
    let (done, mut ended) = mpsc::unbounded_channel();
    drive::run(Arc::new(client), Arc::new(workload), stage, done).await;
    let mut records = vec![];
    while let Ok(record) = ended.try_recv() {
        records.push(record);
    }
    records
}

/// The machine may be slow, never fast.
fn at_least(found: f64, expected: f64) {
    assert!(found >= expected && found < expected + 0.5, "{found} s for {expected} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn times_and_tokens_of_both_endpoints_are_what_the_server_gave() {
    for endpoint in [Endpoint::Chat, Endpoint::Completions] {
        let records = run(client(endpoint, PACE), workload(), Load::Concurrency(1), 2).await;
        assert_eq!(records.len(), 2);
        for record in records {
            assert!(record.is_ok() && !record.is_estimate, "{record:?}");
            assert_eq!((record.prompt_tokens, record.output_tokens), (20, 5));
            assert_eq!(record.gaps.len(), 4);
            at_least(record.ttft.unwrap(), 0.04);
            at_least(record.e2e, 0.08);
            at_least(record.tpot().unwrap(), 0.01);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_loop_has_no_more_requests_at_a_time_than_asked() {
    let records = run(client(Endpoint::Chat, PACE), workload(), Load::Concurrency(3), 9).await;
    assert_eq!(records.len(), 9);
    let at = |time: f64| records.iter().filter(|r| r.sent <= time && time < r.sent + r.e2e).count();
    let most = records.iter().map(|record| at(record.sent)).max().unwrap();
    assert!((2..=3).contains(&most), "{most}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_loop_sends_on_time_however_slow_the_server_is() {
    let pace = Pace { before_first: Duration::from_secs(3), ..Pace::default() };
    let records = run(client(Endpoint::Chat, pace), workload(), Load::Rate(100.0), 30).await;
    assert_eq!(records.len(), 30);
    let sent = records.iter().map(|record| record.sent).fold(0.0, f64::max);
    // Whoever waited for one answer would be later, on however busy a machine.
    assert!(sent < 2.9, "the last of 30 was sent after {sent} s");
    assert!(records.iter().all(|record| record.late < 2.5), "{records:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn later_turns_carry_the_answers_before_them() {
    let workload = Workload { turns: 3, ..workload() };
    let records =
        run(client(Endpoint::Completions, Pace::default()), workload, Load::Concurrency(1), 1)
            .await;
    let prompts: Vec<_> = records.iter().map(|record| record.prompt_tokens).collect();
    // 20 words, 5 of an answer, 20 more, and so on.
    assert_eq!(prompts, [20, 45, 70]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_told_apart() {
    let mut client = client(Endpoint::Chat, Pace::default());
    client.deadline = Duration::from_secs(2);
    let start = std::time::Instant::now();
    for (prompt, expected) in [
        ("refuse", Outcome::Error("429".into())),
        ("hang", Outcome::Timeout),
        ("cut", Outcome::Error("the answer ended without [DONE]".into())),
        ("fail", Outcome::Error("the answer ended with an error".into())),
        ("silent", Outcome::Error("the answer has neither text nor usage".into())),
        ("fine", Outcome::Ok),
    ] {
        let record = client.ask(&[message("user", prompt)], 4, start).await;
        assert_eq!(record.outcome, expected, "{prompt}");
        assert_eq!(record.ttft.is_some(), ["cut", "fine"].contains(&prompt), "{prompt}");
    }
    client.base = "http://127.0.0.1:1".into();
    let record = client.ask(&[message("user", "x")], 4, start).await;
    assert!(matches!(record.outcome, Outcome::Error(reason) if reason.contains("refused")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_is_played_at_its_own_times() {
    let dataset = vec![line("hello", 1000), line("hello", 1200), line("hello", 1500)];
    let workload = Workload { dataset, ..workload() };
    let records = run(client(Endpoint::Chat, Pace::default()), workload, Load::Trace, 10).await;
    assert_eq!(records.len(), 3);
    for (record, at) in records.iter().zip([0.0, 0.2, 0.5]) {
        at_least(record.sent, at);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_stage_of_a_trace_asks_its_own_lines_at_their_own_times() {
    let lines = [("a", 0), ("a b", 900), ("a b c", 1000), ("a b c d", 1400)];
    let dataset = lines.map(|(text, ms)| line(text, ms)).to_vec();
    let stage = Stage { load: Load::Trace, num_sessions: 2, time: None, first_session: 2 };
    let workload = Workload { dataset, ..workload() };
    let records = play(client(Endpoint::Chat, Pace::default()), workload, &stage).await;
    assert_eq!(records.iter().map(|record| record.prompt_tokens).collect::<Vec<_>>(), [3, 4]);
    for (record, at) in records.iter().zip([0.0, 0.4]) {
        at_least(record.sent, at);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_cache_held_is_read_from_the_answers() {
    let workload = Workload { dataset: vec![line("squeezed", 0)], ..workload() };
    let load = Load::Concurrency(1);
    let records = run(client(Endpoint::Chat, Pace::default()), workload, load, 2).await;
    let kv = KvCache { bytes: 300.0, peak_bytes: 500.0, f16_bytes: 1000.0 };
    assert!(records.iter().all(|record| record.kv == Some(kv)), "{records:?}");
    let summary = Summary::new(load, &records, vec![], &[]);
    assert_eq!((summary.kv_bytes, summary.kv_f16_bytes), (Some(300.0), Some(1000.0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thought_is_the_first_token_and_no_part_of_the_answer_is_lost() {
    let client = client(Endpoint::Chat, PACE);
    let record = client.ask(&[message("user", "think")], 3, std::time::Instant::now()).await;
    assert_eq!((record.gaps.len(), record.text.as_str()), (2, "hm word word"));
    assert!(record.ttft.unwrap() < record.e2e);
}

#[test]
fn two_runs_are_saved_and_put_side_by_side() {
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        load: Arguments,
    }
    let load = |arguments: &[&str]| {
        let cli = Cli::try_parse_from([&["load"], arguments].concat()).unwrap();
        super::run(&cli.load).unwrap();
    };
    let url = format!("http://{}", start(PACE).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for name in ["full", "squeezed"] {
        let stages = ["--concurrency", "1,2", "--requests", "6", "--output-tokens", "30"];
        load(&[&["--url", &url, "--name", name, "--out", &path(name)], &stages[..]].concat());
        let requests = std::fs::read_to_string(path(&format!("{name}/requests.jsonl"))).unwrap();
        assert_eq!(requests.lines().count(), 12);
    }
    let reports = ["full", "squeezed"].map(|name| path(&format!("{name}/report.json")));
    load(&["--compare", &reports[0], &reports[1], "--out", &path("both")]);
    let html = std::fs::read_to_string(path("both/report.html")).unwrap();
    for part in ["Load: full and squeezed", "Side by side", "(\u{d7}", "2 at a time: the server"] {
        assert!(html.contains(part), "{part}");
    }
}
