use serde_json::json;

use super::{
    completion, number,
    server::{COMPLETIONS, Server},
};

#[test]
fn a_stream_that_runs_when_the_server_is_told_to_end_is_finished() {
    let mut server = Server::with_memory("64MiB");
    let mut stream = server.stream(COMPLETIONS, &completion("Once upon a time", 60, json!({})));
    assert!(stream.next().is_some());
    server.terminate();
    let rest = stream.collect_choice();
    assert_eq!(rest.finish_reason, "length");
    assert_eq!(number(&rest.usage["completion_tokens"]), 60);
    assert!(server.wait().success());
}

#[test]
fn a_stream_that_outlives_the_timeout_ends_with_abort_and_its_usage() {
    let mut server = Server::start(&["--kv-memory", "256MiB", "--shutdown-timeout", "100ms"]);
    let mut stream = server.stream(COMPLETIONS, &completion("Once upon a time", 7000, json!({})));
    assert!(stream.next().is_some());
    server.terminate();
    let rest = stream.collect_choice();
    assert_eq!(rest.finish_reason, "abort");
    assert!(number(&rest.usage["completion_tokens"]) < 7000);
    assert!(server.wait().success());
}
