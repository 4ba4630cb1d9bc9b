//! What stands beside the server in `docker/`: dashboards and alerts ask only for metrics that the
//! server emits, and the files agree with each other.

use std::collections::BTreeSet;
use std::path::PathBuf;

use keepwell_server::metrics::{FAMILIES, Kind};
use serde_json::Value;

fn read(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docker").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every string under a key of this name.
fn strings<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                match value.as_str().filter(|_| name == key) {
                    Some(text) => found.push(text),
                    None => strings(value, key, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| strings(value, key, found)),
        _ => {}
    }
}

/// The words of a query that Prometheus reads as names of metrics: those that are no function, no
/// keyword, no label and no part of a string.
fn metric_names(query: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut rest = query;
    // In braces, brackets and lists of labels stand no metrics.
    let (mut depth, mut labels_follow) = (0, false);
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        let len = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        if len > 0 {
            let (word, after) = rest.split_at(len);
            let is_number = first.is_ascii_digit();
            // `sum (x)`, and `sum by (y) (x)` as well.
            let calls = ["(", "by ", "without "].iter().any(|c| after.trim_start().starts_with(c));
            labels_follow = ["by", "without", "on", "ignoring"].contains(&word);
            if depth == 0 && !is_number && !calls && !labels_follow {
                names.insert(word.to_owned());
            }
            rest = after;
            continue;
        }
        match first {
            '{' | '[' => depth += 1,
            '(' if labels_follow || depth > 0 => depth += 1,
            '}' | ']' => depth -= 1,
            ')' if depth > 0 => depth -= 1,
            _ => {}
        }
        if first == '"' {
            let end = rest[1..].find('"').expect("strings end");
            rest = &rest[end + 2..];
        } else {
            rest = &rest[first.len_utf8()..];
        }
    }
    names
}

/// Whether a scrape of the server has series of this name.
fn is_emitted(name: &str) -> bool {
    FAMILIES.iter().any(|family| match family.kind {
        Kind::Histogram(_) => ["_bucket", "_sum", "_count"]
            .iter()
            .any(|suffix| name.strip_suffix(suffix) == Some(family.name)),
        Kind::Counter | Kind::Gauge => family.name == name,
    })
}

#[test]
fn names_are_found_wherever_a_query_has_them() {
    for (query, expected) in [
        (
            "histogram_quantile(0.5, sum by (le) (rate(a:b_bucket{m=~\"$x y\"}[5m])))",
            &["a:b_bucket"][..],
        ),
        ("sum(a) - sum(b{x!=\"c\"}) > 0", &["a", "b"]),
        ("sum by (le, stage) (rate(a[$__rate_interval])) / on (x) c", &["a", "c"]),
    ] {
        let expected: BTreeSet<_> = expected.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(metric_names(query), expected, "{query}");
    }
}

#[test]
fn every_query_of_the_dashboard_names_only_metrics_that_the_server_emits() {
    let dashboard: Value = serde_json::from_str(&read("grafana/dashboards/keepwell.json")).unwrap();
    let mut queries = Vec::new();
    strings(&dashboard, "expr", &mut queries);
    assert!(queries.len() >= 40, "{}", queries.len());
    let mut asked = BTreeSet::new();
    for query in queries {
        let names = metric_names(query);
        assert!(!names.is_empty(), "{query}");
        for name in names {
            assert!(is_emitted(&name), "{name}, of {query}");
            asked.insert(name);
        }
    }
    for part in ["keepwell_kv_bytes", "vllm:time_to_first_token_seconds_bucket"] {
        assert!(asked.contains(part), "{part}");
    }
}

/// The variables of the dashboard are labels of a family: `label_values(name, label)`.
#[test]
fn the_dashboards_variables_are_labels_that_their_metrics_have() {
    let dashboard: Value = serde_json::from_str(&read("grafana/dashboards/keepwell.json")).unwrap();
    let mut queries = Vec::new();
    strings(&dashboard["templating"], "query", &mut queries);
    assert!(!queries.is_empty());
    for query in queries {
        let arguments = query.strip_prefix("label_values(").and_then(|q| q.strip_suffix(')'));
        let (name, label) = arguments.and_then(|both| both.split_once(", ")).expect(query);
        let family = FAMILIES.iter().find(|family| family.name == name).expect(query);
        assert!(label == "model_name" || family.labels.contains(&label), "{query}");
    }
}

#[test]
fn every_alert_names_only_metrics_that_the_server_emits() {
    let rules = read("prometheus/alerts.yml");
    let queries: Vec<_> = rules.lines().filter_map(|l| l.trim().strip_prefix("expr: ")).collect();
    assert!(queries.len() >= 3);
    for query in queries {
        for name in metric_names(query) {
            // Prometheus itself knows whether a target answers.
            assert!(name == "up" || is_emitted(&name), "{name}, of {query}");
        }
    }
}

#[test]
fn the_dashboard_reads_the_data_source_that_is_provisioned() {
    let dashboard: Value = serde_json::from_str(&read("grafana/dashboards/keepwell.json")).unwrap();
    let sources = read("grafana/provisioning/datasources/prometheus.yaml");
    let uid = sources.lines().find_map(|line| line.trim().strip_prefix("uid: ")).unwrap();
    let mut uids = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        strings(&panel["datasource"], "uid", &mut uids);
        strings(&panel["targets"], "uid", &mut uids);
    }
    assert!(uids.len() > 40 && uids.iter().all(|found| *found == uid));
}

#[test]
fn both_images_are_built_with_the_features_that_are_asked_for_and_by_default_with_none_more() {
    for (name, features) in [("Dockerfile", "cuda,${FEATURES}"), ("Dockerfile.cpu", "${FEATURES}")]
    {
        let text = read(name);
        assert!(text.lines().any(|line| line == "ARG FEATURES="), "{name}");
        let asks = format!("--package keepwell-server --features \"{features}\"");
        assert_eq!(text.matches(&asks).count(), 2, "dependencies and server, {name}");
    }
}

#[test]
fn the_images_differ_only_where_the_gpu_is() {
    let runtime = |name: &str| {
        let text = read(name);
        let lines = text.lines().skip_while(|line| !line.starts_with("COPY --from=build /src"));
        lines
            .filter(|line| !line.contains("NVIDIA") && !line.starts_with('#'))
            .map(|line| line.trim_end_matches(" \\").to_owned())
            .collect::<Vec<_>>()
    };
    let cpu = runtime("Dockerfile.cpu");
    assert_eq!(cpu, runtime("Dockerfile"));
    for line in ["USER 10001:0", "STOPSIGNAL SIGTERM", "ENTRYPOINT [\"keepwell\"]"] {
        assert!(cpu.iter().any(|found| found == line), "{line}");
    }
}
