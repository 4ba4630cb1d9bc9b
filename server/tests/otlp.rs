//! Spans reach an OpenTelemetry collector: `cargo test --release -p keepwell-server --features otlp
//! --test otlp`.
#![cfg(feature = "otlp")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Path and body of one request.
fn receive(stream: TcpStream) -> Option<(String, Vec<u8>)> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        reader.read_line(&mut head).ok().filter(|read| *read > 0)?;
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    })?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let mut stream = stream;
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").ok()?;
    Some((head.split(' ').nth(1)?.to_owned(), body))
}

#[test]
fn a_request_leaves_its_span_and_that_of_its_sequence() {
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    let (sender, received) = mpsc::channel();
    thread::spawn(move || {
        for exported in collector.incoming().flatten().filter_map(receive) {
            sender.send(exported).unwrap();
        }
    });
    let flags = ["serve", "--port", "0", "--calibration", "off", "--kv-memory", "64MiB"];
    let mut server = Command::new(env!("CARGO_BIN_EXE_keepwell"))
        .args(flags)
        .args(["--otlp-endpoint", &endpoint])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(server.stdout.take().unwrap()).lines().map_while(Result::ok);
    let address =
        |line: String| Some(line.split_once("http://")?.1.strip_suffix("/v1")?.to_owned());
    let address = lines.into_iter().find_map(address).unwrap();
    let body = r#"{"prompt": "Hello", "max_tokens": 3}"#;
    let request = ureq::post(format!("http://{address}/v1/completions"));
    request.header("content-type", "application/json").send(body).unwrap();
    // What is left is sent when the server ends.
    let pid = server.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(server.wait().unwrap().success());

    let mut all = Vec::new();
    while let Ok((path, body)) = received.recv_timeout(Duration::from_millis(500)) {
        assert_eq!(path, "/v1/traces");
        all.extend(body);
    }
    let all = String::from_utf8_lossy(&all);
    for part in ["keepwell", "/v1/completions", "sequence", "gen_ai.usage.output_tokens"] {
        assert!(all.contains(part), "{part}");
    }
}
