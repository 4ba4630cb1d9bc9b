//! The binary as a user meets it when something is wrong: one line, no backtrace, an exit code.

use std::net::TcpListener;
use std::process::{Command, Output};

fn keepwell(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keepwell"));
    command.args(args).env("RUST_BACKTRACE", "1").output().unwrap()
}

/// What a run that must end with exit code 1 wrote to stderr.
fn failure(args: &[&str]) -> String {
    let output = keepwell(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.starts_with("error: ") && error.lines().count() == 1, "{error}");
    error
}

#[test]
fn a_port_in_use_is_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    assert!(failure(&["--port", &port]).contains(&format!("127.0.0.1:{port}")));
}

#[test]
fn an_unknown_model_is_one_line() {
    let unknown = "./no/such/model";
    assert!(failure(&["serve", "--port", "0", "--model", unknown]).contains(unknown));
    assert!(failure(&["chat", "--model", unknown]).contains(unknown));
}

#[test]
fn a_calibration_file_that_is_not_there_is_one_line_before_the_model_is_looked_for() {
    let flags = ["--calibration", "./no/such/text", "--model", "./no/such/model"];
    let error = failure(&[&["serve", "--port", "0"], &flags[..]].concat());
    assert!(error.contains("--calibration ./no/such/text"), "{error}");
    assert!(failure(&[&["chat"], &flags[..]].concat()).contains("./no/such/text"));
}

/// What hears signals while the model loads ends with the start, in whatever order.
#[test]
fn a_start_that_fails_never_looks_like_one_that_was_asked_to_end() {
    for _ in 0..50 {
        failure(&["serve", "--port", "0", "--model", "./no/such/model"]);
    }
}

#[test]
fn a_folder_without_a_model_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    failure(&["chat", "--model", folder.path().to_str().unwrap()]);
}

#[test]
fn a_wrong_flag_is_told_with_what_is_right() {
    let output = keepwell(&["--kv-budget", "2"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("above 0 and at most 1"));
}

#[test]
fn a_wrong_variable_of_the_server_does_not_keep_the_chat_from_starting() {
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keepwell"));
        command.args(args).args(["--model", "./no/such/model"]).env("KEEPWELL_PORT", "abc");
        command.output().unwrap().status.code()
    };
    assert_eq!(run(&["chat"]), Some(1));
    assert_eq!(run(&["serve"]), Some(2));
    assert_eq!(run(&[]), Some(2));
}

#[test]
fn a_switch_is_on_whichever_way_its_variable_says_so() {
    let run = |value: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keepwell"));
        let flags = ["--port", "0", "--model", "./no/such/model"];
        command.args(flags).env("KEEPWELL_DEBUG_KV", value).output().unwrap().status.code()
    };
    for value in ["1", "0", "true", "false", "yes", "off"] {
        assert_eq!(run(value), Some(1), "it is the model that is missing: {value}");
    }
    assert_eq!(run("perhaps"), Some(2));
}

#[test]
fn the_version_is_that_of_the_crate() {
    let output = keepwell(&["--version"]);
    let expected = concat!("keepwell ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
}
