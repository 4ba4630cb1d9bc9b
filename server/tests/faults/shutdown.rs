//! Signals while many requests run.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{
    Healthy, greedy,
    server::{COMPLETIONS, Server, Stream},
};

/// Streams that have begun, and would go on for long.
fn running(server: &Server) -> Vec<Stream> {
    let begin = |nth: usize| {
        let mut stream = server.stream(COMPLETIONS, &greedy(&format!("Stream {nth} "), 990));
        assert!(stream.next().is_some());
        stream
    };
    (0..32).map(begin).collect()
}

#[test]
fn a_server_told_to_end_under_load_aborts_what_outlives_its_deadline_and_ends_well() {
    let mut healthy = Healthy::start(&["--kv-memory", "64MiB", "--shutdown-timeout", "300ms"]);
    let streams = running(&healthy.server);
    healthy.server.terminate();
    let reasons: Vec<_> =
        streams.into_iter().map(|stream| stream.collect_choice().finish_reason).collect();
    assert!(reasons.iter().all(|r| ["abort", "length"].contains(&r.as_str())), "{reasons:?}");
    assert!(reasons.iter().any(|r| r == "abort"), "{reasons:?}");
    assert_eq!(healthy.server.wait().code(), Some(0));
}

#[test]
fn a_second_signal_ends_the_server_now() {
    let mut healthy = Healthy::start(&["--kv-memory", "64MiB", "--shutdown-timeout", "10m"]);
    let streams = running(&healthy.server);
    healthy.server.terminate();
    thread::sleep(Duration::from_millis(100));
    let second = Instant::now();
    healthy.server.terminate();
    assert_eq!(healthy.server.wait().code(), Some(1));
    assert!(second.elapsed() < Duration::from_secs(10), "{:?}", second.elapsed());
    drop(streams);
}

#[test]
fn a_server_that_is_killed_leaves_no_client_hanging_and_its_successor_answers_the_same() {
    let mut healthy = Healthy::start(&["--kv-memory", "64MiB"]);
    let mut streams = running(&healthy.server);
    healthy.server.kill();
    assert_eq!(healthy.server.wait().code(), None);
    for stream in &mut streams {
        while stream.try_next().is_ok_and(|chunk| chunk.is_some()) {}
    }
    let answer = std::mem::take(&mut healthy.answer);
    drop(healthy);
    let successor = Healthy::start(&["--kv-memory", "64MiB"]);
    assert_eq!(successor.answer, answer);
    successor.check();
}
