//! Signals while many requests run.

use std::{
    io::Read,
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
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
fn a_server_told_to_end_while_it_loads_ends_well() {
    let folder = tempfile::tempdir().unwrap();
    // No such text was ever calibrated on: that takes a while.
    let text = folder.path().join("text");
    std::fs::write(&text, format!("{:?} ", Instant::now()).repeat(2000)).unwrap();
    let (mut child, address) = loading(&["--calibration", text.to_str().unwrap()]);
    let started = Instant::now();
    while TcpStream::connect(&address).is_err() {
        assert!(started.elapsed() < Duration::from_secs(60), "nobody listens on {address}");
        thread::sleep(Duration::from_millis(5));
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(!said.contains("/v1"), "it had loaded: {said}");
}

/// A server that does not wait to be ready, and where it will be.
fn loading(flags: &[&str]) -> (Child, String) {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_keepwell"))
        .args(["serve", "--port", &free.port().to_string()])
        .args(flags)
        .stdout(Stdio::piped())
        .spawn();
    (child.unwrap(), free.to_string())
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
