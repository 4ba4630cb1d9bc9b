//! What the log tells of requests.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use super::{server::COMPLETIONS, tiny::TinyModel};

/// What nobody but a client says.
const SECRET: &str = "zanzibar";

#[test]
fn no_text_of_a_request_is_in_the_log_at_any_level() {
    let model = TinyModel::write();
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_keepwell"))
        .args(["serve", "--port", "0", "--model", model.path(), "--log", "trace"])
        .args(["--calibration", "off"])
        .stdout(Stdio::piped())
        .stderr(File::create(log.path()).unwrap())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let address = lines.find_map(|line| Some(line.strip_prefix("address")?.trim().to_owned()));
    let url = address.unwrap().replace("/v1", COMPLETIONS);
    let bodies: [(Value, u16); 4] = [
        (json!({"prompt": SECRET, "max_tokens": 4, "ignore_eos": true}), 200),
        (json!({"prompt": SECRET, "guided_choice": [SECRET]}), 200),
        (json!({"prompt": SECRET, "guided_regex": format!("{SECRET}(")}), 400),
        (json!({"prompt": SECRET, "stop": [SECRET], "n": -1}), 400),
    ];
    for (body, status) in bodies {
        let request = ureq::post(&url).config().http_status_as_error(false).build();
        assert_eq!(request.send_json(&body).unwrap().status(), status, "{body}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let log = fs::read_to_string(log.path()).unwrap();
    assert!(log.contains(COMPLETIONS), "it tells of requests: {log}");
    let line = log.lines().find(|line| line.contains("request status=200")).unwrap();
    for part in ["id=\"cmpl-", "prompt_tokens=", "completion_tokens=4"] {
        assert!(line.contains(part), "{line}");
    }
    assert!(!log.contains(SECRET), "{log}");
}
