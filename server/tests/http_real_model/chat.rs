//! `keepwell chat` behind pipes, and the signals it is sent.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
};

/// A chat that has begun a long answer.
fn answering() -> (Child, impl BufRead) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_keepwell"))
        .args(["chat", "--model", "smollm2", "--log", "error", "--kv-memory", "256MiB"])
        // Drawn at random, an answer may be a short one.
        .args(["--calibration", "off", "--temperature", "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdin = child.stdin.as_mut().unwrap();
    stdin.write_all(b"Tell me a very long story about a river.\n").unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    read_until(&mut out, "e");
    (child, out)
}

/// Reads up to the first `end`.
fn read_until(out: &mut impl BufRead, end: &str) {
    let mut read = String::new();
    let mut byte = [0];
    while out.read(&mut byte).unwrap() > 0 {
        read.push(byte[0].into());
        if read.ends_with(end) {
            return;
        }
    }
    panic!("no {end:?} in {read:?}");
}

fn send(child: &Child, signal: &str) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
}

#[test]
fn an_interrupt_ends_the_answer_and_at_the_prompt_any_signal_ends_the_chat() {
    for last in ["-INT", "-TERM"] {
        let (mut child, mut out) = answering();
        send(&child, "-INT");
        read_until(&mut out, "tokens/s]\n");
        send(&child, last);
        assert_eq!(child.wait().unwrap().code(), Some(0), "{last}");
    }
}

#[test]
fn a_chat_that_is_told_to_terminate_does_so_within_an_answer() {
    let (mut child, mut out) = answering();
    send(&child, "-TERM");
    read_until(&mut out, "tokens/s]\n");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
