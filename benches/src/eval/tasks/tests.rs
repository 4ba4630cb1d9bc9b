use super::*;
use keepwell_kernels::available;
use keepwell_models::{LoadOptions, load};

fn source() -> Source {
    let backend = available().remove(0).into();
    let loaded = load("smollm2", &LoadOptions::default(), backend).unwrap();
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/tests/fixtures/alice.txt");
    Source::new(loaded.tokenizer, loaded.template, &[text.into()]).unwrap()
}

fn plan(seed: u64) -> Plan {
    Plan {
        prefix: 200,
        forced: 32,
        windows: 3,
        samples: 4,
        lengths: vec![150, 300],
        lines: vec![5, 20],
        seed,
    }
}

fn answers(sample: &Sample) -> String {
    match &sample.then {
        Then::Continue(_) | Then::Follow(_) => String::new(),
        Then::Ask(questions) => questions.iter().map(|q| q.digits.clone()).collect(),
    }
}

#[test]
fn samples_depend_on_the_seed_alone_and_hold_their_answers() {
    let source = source();
    for task in TASKS {
        let samples = task.samples(&source, &plan(1)).unwrap();
        let again = task.samples(&source, &plan(1)).unwrap();
        let other = task.samples(&source, &plan(2)).unwrap();
        assert!(samples.iter().zip(&again).all(|(a, b)| a.context == b.context));
        assert!(samples.iter().zip(&other).all(|(a, b)| a.context != b.context), "{}", task.name());
        for sample in &samples {
            let text = source.tokenizer.decode(&sample.context);
            let Then::Ask(questions) = &sample.then else { continue };
            for question in questions {
                assert!(text.contains(&question.digits), "{}: {text}", task.name());
            }
        }
    }
}

#[test]
fn both_modes_ask_the_same_of_the_same_tokens() {
    let source = source();
    let asks = |task: &&&dyn Task| !["kl", "long"].contains(&task.name());
    for task in TASKS.iter().filter(asks) {
        let samples = task.samples(&source, &plan(1)).unwrap();
        assert_eq!(samples.len(), 8, "{}", task.name());
        for pair in samples.chunks(2) {
            assert_eq!([pair[0].place.mode, pair[1].place.mode], [Mode::Agnostic, Mode::Aware]);
            assert_eq!(answers(&pair[0]), answers(&pair[1]));
            let (Then::Ask(agnostic), Then::Ask(aware)) = (&pair[0].then, &pair[1].then) else {
                panic!("{} asks nothing", task.name());
            };
            let whole = [&pair[0].context[..], &agnostic[0].prompt].concat();
            assert_eq!(whole, pair[1].context);
            assert!(aware[0].prompt.is_empty());
        }
    }
}

#[test]
fn a_text_shorter_than_a_sample_is_refused_with_what_to_do() {
    let plan = Plan { prefix: 1_000_000, ..plan(1) };
    let error = kl::Kl.samples(&source(), &plan).unwrap_err().to_string();
    assert!(error.contains("name longer files"), "{error}");
}

#[test]
fn windows_lie_in_all_texts_by_their_length_and_overlap_is_told() {
    let source = source();
    let whole: Vec<u32> = (0..3000).collect();
    let texts = vec![whole[..1000].to_vec(), whole[1000..].to_vec()];
    let source = Source { texts, ..source };
    let windows = source.windows(14, 100, 1).unwrap();
    assert!(windows.iter().all(|window| window.is_sorted() && window.len() == 100));
    assert!(windows.iter().all(|window| window[99] < 1000 || window[0] >= 1000));
    let first = windows.iter().filter(|window| window[0] < 1000).count();
    assert!((4..=5).contains(&first), "{first}");
    assert_eq!(source.overlap(14, 100), None);
    assert!(source.overlap(40, 100).unwrap().contains("overlap"));
}

#[test]
fn answers_are_judged_by_their_digits() {
    let question =
        |grade| Question { prompt: vec![], digits: "1234567".into(), grade, max_tokens: 8 };
    assert_eq!(question(Grade::Contains).score("It is 1234567."), 1.0);
    assert_eq!(question(Grade::Contains).score("It is 123456."), 0.0);
    assert_eq!(question(Grade::Places).score("1234567"), 1.0);
    assert!((question(Grade::Places).score("123 4067") - 6.0 / 7.0).abs() < 1e-9);
    assert_eq!(question(Grade::Places).score("none"), 0.0);
}
