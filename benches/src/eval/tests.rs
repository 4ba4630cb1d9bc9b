//! A whole evaluation of a tiny random model.

use std::{fs, path::Path};

use clap::Parser;
use serde_json::{Map, Value, json};

use super::*;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    arguments: Arguments,
}

/// A model whose tokens are single bytes, and a text.
fn write_world(folder: &Path) {
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tests/fixtures/tiny-llama3");
    for name in ["config.json", "generation_config.json", "model.safetensors"] {
        fs::copy(Path::new(fixture).join(name), folder.join(name)).unwrap();
    }
    let special = json!({"bos_token": "<s>", "eos_token": "</s>"});
    fs::write(folder.join("tokenizer_config.json"), special.to_string()).unwrap();
    fs::write(folder.join("tokenizer.json"), tokenizer().to_string()).unwrap();
    let sentence = |i: usize| format!("Sentence {i} says {} and no more.\n", i * i * 7919);
    fs::write(folder.join("text.txt"), (0..200).map(sentence).collect::<String>()).unwrap();
}

/// Three special tokens and the 128 characters of ASCII, byte by byte.
fn tokenizer() -> Value {
    let special = ["<unk>", "<s>", "</s>"];
    let characters = (0..128u8).map(|byte| match byte {
        b'!'..=b'~' => char::from(byte),
        // GPT-2's stand-ins for bytes that cannot be printed.
        127 => '\u{121}',
        _ => char::from_u32(0x100 + u32::from(byte)).unwrap(),
    });
    let tokens = special.into_iter().map(String::from).chain(characters.map(String::from));
    let vocab: Map<_, _> = tokens.zip(0..).map(|(token, id)| (token, json!(id))).collect();
    let added = |(id, content): (usize, &str)| {
        json!({
            "id": id, "content": content, "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false,
        })
    };
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": special.into_iter().enumerate().map(added).collect::<Vec<_>>(),
        "pre_tokenizer": byte_level, "decoder": byte_level, "post_processor": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocab, "merges": [],
        },
    })
}

fn evaluated(folder: &Path) -> impl Fn(&str) -> String {
    let of = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (text, out) = (of("text.txt"), of("out"));
    let files = ["eval", "--model", folder.to_str().unwrap(), "--text", &text, "--out", &out];
    let names =
        ["--policies", "attribution,recency,uniform_k4v4,rdkv,mikv", "--calibration", "off"];
    let sizes = ["--budgets", "1.0,0.28", "--tasks", "kl,needle,long", "--samples", "4"];
    let lengths = ["--prefix", "300", "--forced", "24", "--windows", "2", "--lengths", "200,300"];
    let words = [&files[..], &names, &sizes, &lengths, &["--baselines-in", "kl,long"]].concat();
    run(Command::parse_from(words).arguments).unwrap();
    move |name| fs::read_to_string(Path::new(&out).join(name)).unwrap()
}

#[test]
fn an_evaluation_leaves_rows_bars_and_a_page_with_all_plots() {
    let folder = tempfile::tempdir().unwrap();
    write_world(folder.path());
    let file = evaluated(folder.path());

    let rows: Vec<rows::Row> = serde_json::from_str(&file("eval.json")).unwrap();
    // kl and long once with seven arms, needle at two lengths in two modes with the four that run for
    // real.
    assert_eq!(rows.len(), 2 * 7 + 4 * 4);
    assert!(rows.iter().all(|row| row.task != "needle" || row.policy != "rdkv"));
    let kls = |policy: &str, budget: f64| -> Vec<f64> {
        let ours = rows.iter().filter(|row| row.policy == policy && row.budget == budget);
        ours.filter_map(|row| row.kl_mean).collect()
    };
    assert_eq!(kls("full", 1.0), [0.0, 0.0]);
    // Without a calibration nothing is turned: a budget of 1 is the exact cache, prefilled anew.
    assert!(kls("attribution", 1.0).iter().all(|kl| *kl < 1e-6));
    assert!(kls("attribution", 0.28).iter().all(|kl| *kl > 1e-6));
    // Of so short a context the last pages, partly empty, are a large share.
    assert!(rows.iter().all(|row| row.bytes_ratio > 0.0 && row.bytes_ratio < 1.5));

    let bars: Vec<Value> = serde_json::from_str(&file("bars.json")).unwrap();
    for bar in &bars {
        let fields: Vec<_> = bar.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, ["bar", "value", "low", "high", "n", "met", "lacks"]);
    }
    let kl = bars.iter().find(|bar| bar["bar"] == "KL at 0.28: at most 0.0012").unwrap();
    assert_eq!((&kl["met"], &kl["lacks"]), (&Value::Null, &json!("n = 2 of 32")));

    let html = file("index.html");
    for title in ["kl, agnostic", "needle, aware, by depth", "long, agnostic", "Bars", "Bits by"] {
        assert!(html.contains(&format!("<h2>{title}")), "{title}");
    }
    // A plot a task and mode, depths for three arms in two modes, bits for three arms.
    assert_eq!(html.matches("<svg").count(), 4 + 2 * 3 + 3);
    assert!(file("overhead.json").contains("compact_seconds"));
    assert!(file("comparisons.json").contains("\"full\""));
}

/// What is wrong with an evaluation of a text by flags that come last.
fn refusal(flags: &[&str]) -> String {
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/tests/fixtures/alice.txt");
    let out = tempfile::tempdir().unwrap();
    // There is no such model: what is said of it is said too late.
    let words = ["eval", "--model", "./none", "--text", text, "--out"];
    let words = [&words[..], &[out.path().to_str().unwrap()], flags].concat();
    let words: Vec<_> = words.into_iter().map(|word| word.replace("TEXT", text)).collect();
    format!("{:#}", run(Command::parse_from(words).arguments).unwrap_err())
}

#[test]
fn what_cannot_be_evaluated_is_refused_before_a_model_is_loaded() {
    let cases: &[(&[&str], &str)] = &[
        (&["--tasks", "kl,needles"], "no task needles"),
        (&["--tasks", "kl,kl"], "--tasks names kl twice"),
        (&["--policies", "full,rdkv,rdkv"], "--policies names rdkv twice"),
        (&["--budgets", "0.2,0.20"], "--budgets names 0.2 twice"),
        (&["--lengths", "100,100"], "--lengths names 100 twice"),
        (&["--lines", "300"], "--lines 300: a record has 1 to 202 lines"),
        (&["--lines", "0"], "--lines 0: a record has 1 to 202 lines"),
        (&["--chunk", "0"], "--chunk must be at least 1"),
        (&["--text", "./no/such/text"], "cannot read \"./no/such/text\""),
        (&["--text", "TEXT", "TEXT"], "twice"),
        (&["--calibration", "TEXT"], "is calibrated on: measure on another text"),
    ];
    for (flags, expected) in cases {
        let refusal = refusal(flags);
        assert!(refusal.contains(expected), "{flags:?}: {refusal}");
    }
    assert!(!refusal(&[]).contains("twice"), "the model is what is missing");
}
