//! Clients that leave, stall, and come in hundreds.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{Healthy, greedy, server::COMPLETIONS};

const NUM_CLIENTS: usize = 200;

/// A request on a connection of its own, cut after `num_bytes` of it.
fn send(address: &str, body: &str, num_bytes: usize) -> TcpStream {
    let head = format!(
        "POST {COMPLETIONS} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let request = head + body;
    let mut connection = TcpStream::connect(address).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    connection.write_all(&request.as_bytes()[..num_bytes.min(request.len())]).unwrap();
    connection
}

/// Leaves somewhere between the first byte of the request and the last of the answer.
fn hang_up(address: &str, body: &str, nth: usize) {
    // Spread over all the places there are, the same in each run.
    let place = nth.wrapping_mul(0x9E37_79B9) >> 7;
    match nth % 4 {
        0 => drop(send(address, body, 1 + place % 100)),
        1 => drop(send(address, body, 140 + place % body.len())),
        2 => {
            let connection = send(address, body, usize::MAX);
            thread::sleep(Duration::from_millis(place as u64 % 300));
            connection.shutdown(Shutdown::Both).unwrap();
        }
        _ => {
            let mut connection = send(address, body, usize::MAX);
            let mut part = vec![0; 1 + place % 4000];
            // The answer may be shorter than what was to be read of it.
            let _ = connection.read_exact(&mut part);
        }
    }
}

fn read_all(address: &str, body: &str) -> String {
    let mut answer = String::new();
    send(address, body, usize::MAX).read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_hundred_clients_that_hang_up_cost_a_hundred_others_nothing() {
    let healthy = Healthy::start(&["--kv-memory", "8MiB", "--body-timeout", "5s"]);
    let address = healthy.server.address();
    thread::scope(|scope| {
        for nth in 0..NUM_CLIENTS {
            let mut body = greedy(&"light ".repeat(1 + nth % 40), 10 + nth % 50);
            body["stream"] = json!(nth % 3 != 0);
            body["kv_cache"] = json!({"budget": if nth % 5 == 0 { 0.3 } else { 1.0 }});
            scope.spawn(move || {
                if nth % 2 == 1 {
                    return hang_up(address, &body.to_string(), nth / 2);
                }
                let answer = read_all(address, &body.to_string());
                assert!(answer.starts_with("HTTP/1.1 200"), "client {nth}: {answer}");
                let end = if nth % 3 != 0 { "data: [DONE]" } else { "\"usage\"" };
                assert!(answer.contains(end), "client {nth}: {answer}");
            });
        }
    });
    healthy.check();
}

#[test]
fn a_reader_that_stalls_holds_up_nobody_and_is_cut_off() {
    let healthy = Healthy::start(&["--kv-memory", "64MiB", "--write-timeout", "2s"]);
    // More than the buffers of two sockets hold.
    let mut body = greedy("The keeper", 900);
    for (name, value) in [("n", json!(16)), ("logprobs", json!(20)), ("stream", json!(true))] {
        body[name] = value;
    }
    let mut stalled = send(healthy.server.address(), &body.to_string(), usize::MAX);
    let mut first = [0; 100];
    stalled.read_exact(&mut first).unwrap();
    let started = Instant::now();
    assert_eq!(super::probe(&healthy.server), healthy.answer);
    assert!(started.elapsed() < Duration::from_secs(60));
    healthy.check();
    let mut rest = vec![];
    // It may end with a reset.
    let _ = stalled.read_to_end(&mut rest);
    assert!(!String::from_utf8_lossy(&rest).contains("[DONE]"), "it was not cut off");
}
