//! What goes wrong outside the server, and inside it, through the real process with a tiny model:
//! after each fault no page is lost, no client hangs, and later answers are what they were before.

mod clients;
mod engine;
mod log;
mod memory;
mod requests;
#[path = "../common/server.rs"]
mod server;
mod shutdown;
#[path = "../common/ties.rs"]
mod ties;
mod tiny;

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use server::{COMPLETIONS, Server};
use tiny::TinyModel;

/// A server of the tiny model with these flags, what it answers when nothing is wrong, and its model.
struct Healthy {
    server: Server,
    answer: String,
    _model: TinyModel,
}

impl Healthy {
    fn start(flags: &[&str]) -> Self {
        let model = TinyModel::write();
        let server = Server::of(model.path(), flags);
        let answer = probe(&server);
        Self { server, answer, _model: model }
    }

    /// Nothing runs, nothing is held, and the next answer is the one from before.
    fn check(&self) {
        let is_at_rest = |metrics: &server::Metrics| {
            let waiting = metrics.sum("vllm:num_requests_waiting", "");
            metrics.live_pages() == 0.0 && metrics.num_running() == 0.0 && waiting == 0.0
        };
        self.server.await_metrics(Duration::from_secs(30), is_at_rest);
        let started = Instant::now();
        while self.server.get("/load")["server_load"] != 0 {
            assert!(started.elapsed() < Duration::from_secs(30), "a request is still answered");
            thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(probe(&self.server), self.answer);
    }
}

/// The tokens of a greedy answer.
fn probe(server: &Server) -> String {
    text(&server.ok(COMPLETIONS, &greedy("The keeper of the light", 24)))
}

/// Goes on to `max_tokens`, and never by itself to a token that is a fault.
fn greedy(prompt: &str, max_tokens: usize) -> Value {
    json!({
        "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true,
        "logprobs": 5, "logit_bias": {"500": -100, "501": -100},
    })
}

fn text(answer: &Value) -> String {
    answer["choices"][0]["text"].as_str().unwrap().to_owned()
}
