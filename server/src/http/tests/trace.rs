use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::layer::SubscriberExt;

use super::{Server, completion_body, ids, says};
use crate::engine::fake::Script;

/// What is logged, while the guard is held.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn start() -> (Self, DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let lines = tracing_subscriber::fmt::layer().json().flatten_event(true);
        let lines = lines.with_writer(move || writer.clone());
        let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines));
        (log, guard)
    }

    fn lines(&self) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines
            .filter(|line: &Value| line["message"].as_str().unwrap().starts_with("request"))
            .collect()
    }
}

#[tokio::test]
async fn a_line_has_the_answers_id_and_tokens_whether_it_streams_or_not() {
    let (log, _guard) = Log::start();
    let server = Server::new(says("hello"));
    let whole = server.complete(json!({"max_tokens": 3, "n": 2})).await;
    let (chunks, _) = server.stream("/v1/chat/completions", super::chat_body(json!({}))).await;
    let response = server.ok("/v1/responses", json!({"input": "x"})).await;
    let lines = log.lines();
    assert_eq!(lines.len(), 3, "{lines:?}");
    for (line, (id, num_tokens)) in
        lines.iter().zip([(&whole["id"], 6), (&chunks[0]["id"], 5), (&response["id"], 5)])
    {
        let span = &line["span"];
        assert_eq!((&span["id"], &line["status"]), (id, &json!(200)), "{line}");
        assert_eq!(span["completion_tokens"], num_tokens, "{line}");
        assert!(span["prompt_tokens"].as_u64() > Some(0), "{line}");
    }
    server.get("/load").await;
    assert!(log.lines()[3]["span"]["id"].is_null());
}

#[tokio::test]
async fn a_stream_is_logged_when_it_ends_and_says_whether_its_client_left() {
    let (log, _guard) = Log::start();
    let server = Server::new(Script::Hang(ids("abc")));
    let path = "/v1/completions";
    let answer = server.post(path, completion_body(json!({"stream": true}))).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(log.lines().len(), 0);
    drop(answer);
    // The headers of what does not stream wait for the whole of it.
    let asked = server.post(path, completion_body(json!({})));
    assert!(tokio::time::timeout(Duration::from_millis(20), asked).await.is_err());
    let lines = log.lines();
    let said = |nth: usize| (lines[nth]["message"].as_str().unwrap(), &lines[nth]["status"]);
    assert_eq!(said(0), ("request: the client left during the answer", &json!(200)));
    assert_eq!(said(1), ("request: the client left before an answer", &Value::Null));
    assert!(lines[0]["seconds"].as_f64() > Some(0.02));
}
