//! Prometheus' text format, read: by the dashboard, the load tester and the tests.

/// One line of a scrape.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// With the suffix: `_bucket`, `_sum`, `_count`.
    pub name: String,
    pub labels: Vec<(String, String)>,
    pub value: f64,
}

impl Sample {
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(label, _)| label == name).map(|(_, value)| value.as_str())
    }
}

/// The samples of a scrape. Comments, and lines that are no samples, are left out.
pub fn parse(text: &str) -> Vec<Sample> {
    text.lines().filter_map(sample).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (vec![], rest),
    };
    // A time stamp may follow.
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// The labels up to the closing brace, and what follows it.
fn labels(mut rest: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = vec![];
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, after) = rest.split_once("=\"")?;
        let (value, after) = quoted(after)?;
        labels.push((name.trim().to_owned(), value));
        rest = after;
    }
}

/// A label's value up to its closing quote, without the backslashes, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    loop {
        match chars.next()? {
            (at, '"') => return Some((value, &text[at + 1..])),
            (_, '\\') => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            (_, other) => value.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_labels_and_values_are_read() {
        let text =
            "# HELP a text\n# TYPE a gauge\na 1\n\nb{x=\"1\",le=\"+Inf\"} 2.5e3 1700000000\n";
        let samples = parse(text);
        assert_eq!(samples.len(), 2);
        assert_eq!((samples[0].name.as_str(), samples[0].value), ("a", 1.0));
        assert_eq!((samples[1].label("le"), samples[1].value), (Some("+Inf"), 2500.0));
        assert_eq!(samples[1].label("y"), None);
    }

    #[test]
    fn escapes_in_labels_do_not_end_them() {
        let sample = &parse(r#"a{m="q\"} 7,\\\n",n=""} NaN"#)[0];
        assert_eq!(sample.label("m"), Some("q\"} 7,\\\n"));
        assert_eq!(sample.label("n"), Some(""));
        assert!(sample.value.is_nan());
    }

    #[test]
    fn damaged_lines_are_left_out() {
        for line in ["a", "a{", "a{x=\"", "a{x=\"1\"}", "a{x=\"1\"} x", "{", "a{x} 1", "a{x=\"\\"] {
            assert_eq!(parse(line), [], "{line}");
        }
    }
}
