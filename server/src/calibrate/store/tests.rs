use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::bail;

use super::*;

fn store(cache: &Path) -> Store {
    Store::new(cache, "key".into(), Shape { num_heads: 3, head_dim: 2 })
}

fn measured() -> Calibration {
    Calibration { refused: vec!["keys in 2 bits".into()], ..Calibration::default() }
}

fn measure_anew(store: &Store) -> bool {
    let known = store.load_or("tiny", || Ok(measured())).unwrap();
    assert_eq!(known.calibration, measured());
    known.measured_in.is_some()
}

#[test]
fn a_model_is_measured_once() {
    let cache = tempfile::tempdir().unwrap();
    assert!(measure_anew(&store(cache.path())));
    assert!(!measure_anew(&store(cache.path())));
    let other = Store { key: "other".into(), ..store(cache.path()) };
    assert!(measure_anew(&other));
}

#[test]
fn a_damaged_file_is_measured_anew_and_replaced() {
    let cache = tempfile::tempdir().unwrap();
    let store = store(cache.path());
    measure_anew(&store);
    let whole = std::fs::read(store.path()).unwrap();
    let too_long = vec![b' '; store.shape.max_bytes() + 1];
    for damaged in [&[][..], &whole[..whole.len() / 2], b"{}", &too_long] {
        std::fs::write(store.path(), damaged).unwrap();
        assert!(measure_anew(&store));
        assert!(!measure_anew(&store));
    }
}

#[test]
fn a_folder_in_the_files_place_is_survived() {
    let cache = tempfile::tempdir().unwrap();
    let store = store(cache.path());
    std::fs::create_dir_all(store.path()).unwrap();
    assert!(measure_anew(&store));
}

#[test]
fn a_cache_that_cannot_be_written_costs_only_the_time() {
    let cache = tempfile::tempdir().unwrap();
    let file = cache.path().join("file");
    std::fs::write(&file, "no folder").unwrap();
    assert!(measure_anew(&store(&file)));
}

#[test]
fn what_cannot_be_measured_leaves_no_file() {
    let cache = tempfile::tempdir().unwrap();
    let store = store(cache.path());
    assert!(store.load_or("tiny", || bail!("too small")).is_err());
    assert!(!store.path().exists());
    assert!(measure_anew(&store));
}

#[test]
fn of_many_at_once_one_measures_and_the_others_wait_for_it() {
    let cache = tempfile::tempdir().unwrap();
    let num_measured = AtomicUsize::new(0);
    let measure = || {
        num_measured.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(50));
        Ok(measured())
    };
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| store(cache.path()).load_or("tiny", measure).unwrap());
        }
    });
    assert_eq!(num_measured.into_inner(), 1);
}
