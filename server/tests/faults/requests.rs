//! Bodies that are no requests.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use super::Healthy;

const PATHS: [&str; 5] =
    ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/tokenize"];

/// The answer to these bytes.
fn raw(address: &str, head: &str, body: &[u8]) -> String {
    let mut connection = TcpStream::connect(address).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    connection.write_all(head.as_bytes()).unwrap();
    // A body that is too large is refused before it is read to its end.
    let _ = connection.write_all(body);
    let mut answer = vec![];
    let _ = connection.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn head(path: &str, fields: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\
         content-type: application/json\r\n{fields}\r\n\r\n"
    )
}

fn check_refusal(answer: &str, statuses: &[&str]) {
    let status = answer.get(9..12).unwrap_or_default();
    assert!(statuses.contains(&status), "{statuses:?}: {answer}");
    assert!(answer.contains("{\"error\":{\"message\":\""), "no envelope: {answer}");
}

#[test]
fn malformed_bodies_are_refused_whatever_the_endpoint() {
    let healthy = Healthy::start(&["--kv-memory", "8MiB", "--body-timeout", "1s"]);
    let address = healthy.server.address();
    let deep = format!("{{\"messages\": {}", "[{\"a\":".repeat(50_000));
    let bodies: [&[u8]; 10] = [
        b"",
        b"null",
        b"[]",
        b"{",
        b"{\"prompt\": \"a\"} trailing",
        b"{\"prompt\": \"\xff\xfe\"}",
        b"{\"prompt\": \"\\ud800\"}",
        b"{\"prompt\": 1e999999999}",
        b"\x00\x01\x02",
        deep.as_bytes(),
    ];
    for path in PATHS {
        for body in bodies {
            let length = format!("content-length: {}", body.len());
            check_refusal(&raw(address, &head(path, &length), body), &["400"]);
        }
        // Shorter than it said: the rest never comes.
        check_refusal(
            &raw(address, &head(path, "content-length: 50"), b"{\"prompt\": "),
            &["400", "408"],
        );
        let chunked = head(path, "transfer-encoding: chunked");
        check_refusal(&raw(address, &chunked, b"5\r\n{\"a\":\r\nnonsense\r\n"), &["400"]);
    }
    healthy.check();
}

#[test]
fn oversized_bodies_are_refused_whether_or_not_they_tell_their_size() {
    let healthy = Healthy::start(&["--kv-memory", "8MiB", "--max-body-size", "100KiB"]);
    let address = healthy.server.address();
    let large = format!("{{\"prompt\": \"{}\"}}", "x".repeat(200 << 10));
    let chunk = format!("{:x}\r\n{large}\r\n0\r\n\r\n", large.len());
    for path in PATHS {
        let length = format!("content-length: {}", large.len());
        check_refusal(&raw(address, &head(path, &length), large.as_bytes()), &["413"]);
        let huge = head(path, "content-length: 9000000000000000000");
        check_refusal(&raw(address, &huge, large.as_bytes()), &["413"]);
        let chunked = head(path, "transfer-encoding: chunked");
        check_refusal(&raw(address, &chunked, chunk.as_bytes()), &["413"]);
    }
    healthy.check();
}
