//! More than the arena holds.

use std::thread;

use serde_json::Value;

use super::{
    Healthy, greedy,
    server::{COMPLETIONS, Server},
    ties::check_same_up_to_ties,
};

fn prompt(nth: usize) -> String {
    format!("Number {nth} of those that wait. ").repeat(4)
}

fn answers(server: &Server, nths: std::ops::Range<usize>) -> Vec<Value> {
    let ask = |nth| server.ok(COMPLETIONS, &greedy(&prompt(nth), 120));
    thread::scope(|scope| {
        let asked: Vec<_> = nths.map(|nth| scope.spawn(move || ask(nth))).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    })
}

#[test]
fn requests_for_many_times_the_arena_all_end_with_their_own_answers() {
    // Room for three of them at a time.
    let healthy = Healthy::start(&["--kv-memory", "640KiB"]);
    let together = answers(&healthy.server, 0..40);
    for (nth, together) in together.iter().enumerate() {
        let alone = answers(&healthy.server, nth..nth + 1);
        check_same_up_to_ties(together, &alone[0]);
    }
    let error = healthy.server.refusal(COMPLETIONS, &greedy(&prompt(0), 900));
    assert_eq!(error["code"], "kv_memory_exceeded", "{error}");
    healthy.check();
}
