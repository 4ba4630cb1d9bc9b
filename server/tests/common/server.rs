//! `keepwell serve` in a process of its own, and a client for it.
#![allow(dead_code)] // each test program uses its part

use std::{
    collections::BTreeSet,
    io::{self, BufRead, BufReader, Write},
    net::TcpStream,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use ureq::{Agent, Body, http::Response};

pub const CHAT: &str = "/v1/chat/completions";
pub const COMPLETIONS: &str = "/v1/completions";

/// Nothing here takes longer on a slow machine, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// One step and one publication of the gauges, on a busy machine.
pub const SOON: Duration = Duration::from_secs(3);

/// How often metrics are read while something is awaited.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Two servers at a time would only get into each other's way.
static TURN: Mutex<()> = Mutex::new(());

/// One process for each test: flags and metrics are its own. Killed when dropped.
pub struct Server {
    child: Child,
    address: String,
    agent: Agent,
    _turn: MutexGuard<'static, ()>,
}

impl Server {
    /// Serves SmolLM2 with these flags.
    pub fn start(flags: &[&str]) -> Self {
        Self::of("smollm2", flags)
    }

    /// Serves this model.
    pub fn of(model: &str, flags: &[&str]) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut child = Command::new(env!("CARGO_BIN_EXE_keepwell"))
            .args(["serve", "--port", "0", "--model", model, "--log", "error"])
            // It takes most of a minute, and none of these tests is about it.
            .args(["--calibration", "off"])
            .args(flags)
            // Whoever runs the tests may have one.
            .env_remove("KEEPWELL_API_KEY")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("http://")?.1.strip_suffix("/v1")?.to_owned()))
            .expect("the server tells its address");
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .build();
        Self { child, address, agent: config.into(), _turn: turn }
    }

    pub fn with_memory(kv_memory: &str) -> Self {
        Self::start(&["--kv-memory", kv_memory])
    }

    /// `127.0.0.1:8000`
    pub fn address(&self) -> &str {
        &self.address
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn send(&self, path: &str, body: &[u8]) -> Response<Body> {
        let request = self.agent.post(self.url(path)).header("content-type", "application/json");
        request.send(body).unwrap()
    }

    /// Status and answer to a body that need not be JSON.
    pub fn raw(&self, path: &str, body: &[u8]) -> (u16, Value) {
        let mut response = self.send(path, body);
        let body = response.body_mut().with_config().limit(1 << 30).read_json().unwrap();
        (response.status().as_u16(), body)
    }

    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.raw(path, body.to_string().as_bytes())
    }

    /// A page in JSON that must be there.
    pub fn get(&self, path: &str) -> Value {
        let mut response = self.agent.get(self.url(path)).call().unwrap();
        assert_eq!(response.status(), 200, "{path}");
        response.body_mut().read_json().unwrap()
    }

    /// The answer to a request that must succeed.
    pub fn ok(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.post(path, body);
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// `error` of a request that must be refused with 400.
    pub fn refusal(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.post(path, body);
        assert_eq!(status, 400, "{answer}");
        answer["error"].clone()
    }

    /// A stream that has begun. Dropping it hangs up.
    pub fn stream(&self, path: &str, body: &Value) -> Stream {
        let mut body = body.clone();
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let response = self.send(path, body.to_string().as_bytes());
        assert_eq!(response.status(), 200);
        let lines = BufReader::new(response.into_body().into_reader()).lines();
        Stream { lines: Box::new(lines), done: false }
    }

    /// A connection on which the request was sent and no answer awaited.
    pub fn send_only(&self, path: &str, body: &Value) -> TcpStream {
        let body = body.to_string();
        let mut connection = TcpStream::connect(&self.address).unwrap();
        write!(
            connection,
            "POST {path} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        connection
    }

    /// The gauges of one moment: they are set one by one, so two equal readings are awaited.
    pub fn metrics(&self) -> Metrics {
        let read =
            || self.agent.get(self.url("/metrics")).call().unwrap().body_mut().read_to_string();
        let mut last = Metrics(read().unwrap());
        loop {
            let next = Metrics(read().unwrap());
            if next.gauges() == last.gauges() {
                return next;
            }
            last = next;
        }
    }

    /// Polls until the metrics are as wanted, for `time` at most.
    pub fn await_metrics(&self, time: Duration, wanted: impl Fn(&Metrics) -> bool) -> Metrics {
        let started = Instant::now();
        loop {
            let metrics = self.metrics();
            if wanted(&metrics) {
                return metrics;
            }
            assert!(started.elapsed() < time, "not within {time:?}:\n{}", metrics.0);
            thread::sleep(POLL_INTERVAL);
        }
    }

    pub fn terminate(&self) {
        self.signal("-TERM");
    }

    pub fn kill(&self) {
        self.signal("-KILL");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// How the process ended, which it must within the patience of these tests.
    pub fn wait(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "the server does not end");
            thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails when the test has ended it already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The chunks of a streamed answer.
pub struct Stream {
    lines: Box<dyn Iterator<Item = io::Result<String>>>,
    /// Whether `[DONE]` was seen.
    pub done: bool,
}

impl Iterator for Stream {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        self.try_next().unwrap()
    }
}

impl Stream {
    /// The next chunk, or why there is none: the server is gone.
    pub fn try_next(&mut self) -> io::Result<Option<Value>> {
        for line in &mut self.lines {
            if let Some(data) = line?.strip_prefix("data: ") {
                self.done = data == "[DONE]";
                return Ok((!self.done).then(|| serde_json::from_str(data).unwrap()));
            }
        }
        Ok(None)
    }
}

/// What a stream said from here to its end.
#[derive(Debug, Default)]
pub struct Streamed {
    pub text: String,
    pub finish_reason: String,
    pub usage: Value,
}

impl Stream {
    pub fn collect_choice(mut self) -> Streamed {
        let mut whole = Streamed::default();
        for chunk in &mut self {
            let choice = &chunk["choices"][0];
            let text = choice["delta"]["content"].as_str().or(choice["text"].as_str());
            whole.text += text.unwrap_or_default();
            whole.finish_reason += choice["finish_reason"].as_str().unwrap_or_default();
            if !chunk["usage"].is_null() {
                whole.usage = chunk["usage"].clone();
            }
        }
        assert!(self.done, "no [DONE] after {whole:?}");
        whole
    }
}

/// An answer of `GET /metrics`.
pub struct Metrics(String);

impl Metrics {
    /// Their order changes from reading to reading.
    fn gauges(&self) -> BTreeSet<&str> {
        let names =
            ["keepwell_kv_bytes{", "keepwell_kv_pages{", "vllm:kv_cache", "vllm:num_requests"];
        let is_gauge = |line: &&str| names.iter().any(|name| line.starts_with(name));
        self.0.lines().filter(is_gauge).collect()
    }

    pub fn text(&self) -> &str {
        &self.0
    }

    /// The sum of the series whose name is `name` and whose labels contain `label`.
    pub fn sum(&self, name: &str, label: &str) -> f64 {
        let series = self.0.lines().filter_map(|line| line.rsplit_once(' '));
        let value = |(series, value): (&str, &str)| {
            let labels = series.strip_prefix(name)?.strip_prefix('{')?;
            labels.contains(label).then(|| value.parse::<f64>().unwrap())
        };
        series.filter_map(value).sum()
    }

    pub fn live_pages(&self) -> f64 {
        self.sum("keepwell_kv_pages", "state=\"live\"")
    }

    pub fn num_pages(&self) -> f64 {
        self.sum("keepwell_kv_pages", "")
    }

    pub fn num_running(&self) -> f64 {
        self.sum("vllm:num_requests_running", "")
    }
}
