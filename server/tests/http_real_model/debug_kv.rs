use serde_json::{Value, json};

use super::{
    alice, completion, number,
    server::{COMPLETIONS, Server},
};

/// Entries by tier, summed over the tokens of a page.
fn entries(page: &Value) -> Vec<(String, u64)> {
    let mut sums = std::collections::BTreeMap::<String, u64>::new();
    for token in page["tokens"].as_array().unwrap() {
        for (tier, count) in token["tiers"].as_object().unwrap() {
            *sums.entry(tier.clone()).or_default() += count.as_u64().unwrap();
        }
    }
    sums.into_iter().collect()
}

#[test]
fn the_view_of_a_request_agrees_with_its_usage_and_follows_the_budget() {
    let server = Server::start(&["--kv-memory", "128MiB", "--debug-kv"]);
    let body = completion(alice(700), 5, json!({"kv_cache": {"budget": 0.15}}));
    let answer = server.ok(COMPLETIONS, &body);
    let path = format!("/debug/kv/{}", answer["id"].as_str().unwrap());

    let asked = server.get(&path);
    let usage = &answer["usage"];
    let used = usage["kv_cache"]["tokens"].as_object().unwrap();
    let mut used: Vec<_> =
        used.iter().map(|(tier, n)| (tier.clone(), n.as_u64().unwrap())).collect();
    used.retain(|(_, count)| *count > 0);
    used.sort();
    assert_eq!(entries(&asked), used);
    assert_eq!(asked["bytes"], usage["kv_cache"]["bytes"]);
    assert_eq!(asked["prompt_tokens"], usage["prompt_tokens"]);
    // The last token drawn was not computed any more.
    let num_tokens = number(&usage["total_tokens"]) - 1;
    assert_eq!(asked["tokens"].as_array().unwrap().len(), num_tokens);

    let exact = server.get(&format!("{path}?budget=1"));
    assert_eq!(entries(&exact), [("f16".to_owned(), 90 * num_tokens as u64)]);
    let tight = server.get(&format!("{path}?budget=0.12&layer=3"));
    assert!(number(&tight["bytes"]) < number(&asked["bytes"]));
    let heads: u64 = entries(&tight).iter().map(|(_, count)| count).sum();
    assert_eq!(heads, 3 * num_tokens as u64);
    assert!(entries(&tight).iter().any(|(tier, _)| tier != "f16"));

    // What was dropped says why: there it was worth less than where it is held.
    let tightest = server.get(&format!("{path}?budget=0.1"));
    let mut num_evicted = 0;
    for token in tightest["tokens"].as_array().unwrap() {
        let (held, evicted) = (token["score"].as_f64(), token["evicted_score"].as_f64());
        assert_eq!(evicted.is_some(), token["tiers"]["evicted"].is_u64(), "{token}");
        num_evicted +=
            usize::from(evicted.is_some_and(|score| held.is_none_or(|held| score < held)));
        assert!(held.is_none() || evicted.is_none() || evicted < held, "{token}");
    }
    assert!(num_evicted > 100, "{num_evicted}");
}
