//! A view of a cache as JSON: token by token, of one layer or over all of them.

use keepwell_kernels::{TIERS, Tier};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::engine::KvView;

/// The answer of `GET /debug/kv/{id}`.
#[derive(Debug, Serialize)]
pub struct Page {
    pub id: String,
    pub budget: f32,
    /// `null`: over all layers.
    pub layer: Option<usize>,
    pub num_layers: usize,
    /// Tokens of the prompt; those after it are the answer's.
    pub prompt_tokens: usize,
    pub bytes: usize,
    pub f16_bytes: usize,
    /// Bits of a value in each tier, metadata included.
    pub bits: Map<String, Value>,
    pub tokens: Vec<Token>,
}

#[derive(Debug, Serialize)]
pub struct Token {
    pub text: String,
    /// Mean over heads, an evicted entry counting 0.
    pub bits: f32,
    /// Attribution, as a multiple of the head's mean: mean over the heads that hold the token, `null`
    /// where none does.
    pub score: Option<f32>,
    /// The same, when they evicted it, over those that did; `null` where nobody knows.
    pub evicted_score: Option<f32>,
    /// Heads by what they keep the token in; `evicted` among them.
    pub tiers: Map<String, Value>,
}

impl Page {
    /// `text` gives a token's bytes. `None` when there is no such layer.
    pub fn new(
        id: &str,
        view: &KvView,
        layer: Option<usize>,
        text: impl Fn(u32) -> Vec<u8>,
    ) -> Option<Self> {
        let num_kv_heads = view.heads.len() / view.num_layers;
        let heads = match layer {
            None => &view.heads[..],
            Some(layer) if layer < view.num_layers => {
                &view.heads[layer * num_kv_heads..][..num_kv_heads]
            }
            Some(_) => return None,
        };
        let texts = texts(view.tokens.iter().map(|id| text(*id)));
        let tokens = texts.into_iter().enumerate();
        let is_used = |tier: Tier| view.heads.iter().flatten().any(|kept| kept.tier == Some(tier));
        let used = view.bits.iter().filter(|(tier, _)| is_used(*tier));
        let bits = used.map(|(tier, bits)| (tier.name().to_owned(), (*bits).into())).collect();
        Some(Self {
            id: id.to_owned(),
            budget: view.budget,
            layer,
            num_layers: view.num_layers,
            prompt_tokens: view.prompt_len,
            bytes: view.bytes,
            f16_bytes: view.f16_bytes,
            bits,
            tokens: tokens.map(|(at, text)| token(view, heads, at, text)).collect(),
        })
    }
}

fn token(
    view: &KvView,
    heads: &[Vec<crate::engine::view::Kept>],
    at: usize,
    text: String,
) -> Token {
    let kept = || heads.iter().map(|head| head[at]);
    let num = heads.len().max(1) as f32;
    let scores = |is_held: bool| {
        mean(kept().filter(|kept| kept.tier.is_some() == is_held).filter_map(|kept| kept.score))
    };
    let bits = |tier: Option<_>| tier.map_or(0.0, |tier| view.bits[tier]);
    let count = |tier| kept().filter(|kept| kept.tier == tier).count();
    let tiers = TIERS.iter().map(|info| (info.name, count(Some(info.tier))));
    let tiers = tiers.chain([("evicted", count(None))]).filter(|(_, count)| *count > 0);
    Token {
        text,
        bits: kept().map(|kept| bits(kept.tier)).sum::<f32>() / num,
        score: scores(true),
        evicted_score: scores(false),
        tiers: tiers.map(|(name, count)| (name.to_owned(), count.into())).collect(),
    }
}

/// `None` of nothing.
fn mean(values: impl Iterator<Item = f32>) -> Option<f32> {
    let (sum, num) = values.fold((0.0, 0u32), |(sum, num), value| (sum + value, num + 1));
    (num > 0).then(|| sum / num as f32)
}

/// A token may end inside a character: its bytes go to the token that completes it.
fn texts(tokens: impl Iterator<Item = Vec<u8>>) -> Vec<String> {
    let mut pending = Vec::new();
    let text = |bytes: Vec<u8>| {
        pending.extend(bytes);
        let whole = match str::from_utf8(&pending) {
            Ok(_) => pending.len(),
            // An incomplete character at the end waits; anything else is shown as damaged.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => pending.len(),
        };
        let rest = pending.split_off(whole);
        String::from_utf8_lossy(&std::mem::replace(&mut pending, rest)).into_owned()
    };
    tokens.map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::super::views::tests::view;
    use super::*;

    fn page(layer: Option<usize>) -> Option<Page> {
        Page::new("r", &view(), layer, |id| vec![id as u8])
    }

    #[test]
    fn a_token_has_its_mean_over_the_heads_of_all_layers_or_of_one() {
        let all = page(None).unwrap();
        assert_eq!((all.tokens[1].bits, all.tokens[1].score), (10.0, Some(1.0)));
        let first = page(Some(0)).unwrap();
        assert_eq!((first.tokens[0].bits, first.tokens[2].bits), (16.0, 0.0));
        assert_eq!(first.tokens[0].score, Some(2.0));
        assert!(page(Some(2)).is_none());
    }

    #[test]
    fn a_token_that_some_heads_evicted_has_the_score_of_those_that_hold_it_and_that_of_the_others()
    {
        let token = &page(None).unwrap().tokens[2];
        assert_eq!((&token.tiers["evicted"], token.bits), (&1.into(), 8.0));
        assert_eq!((token.score, token.evicted_score), (Some(1.0), Some(0.25)));
        let token = &page(Some(0)).unwrap().tokens[2];
        assert_eq!((token.score, token.evicted_score), (None, Some(0.25)));
        let token = &page(Some(1)).unwrap().tokens[2];
        assert_eq!((token.score, token.evicted_score), (Some(1.0), None));
    }

    #[test]
    fn a_character_of_several_tokens_stands_at_its_last() {
        let texts: Vec<_> =
            page(None).unwrap().tokens.into_iter().map(|token| token.text).collect();
        assert_eq!(texts, ["h", "", "é"]);
    }

    #[test]
    fn tokens_that_are_no_text_are_shown_as_damaged() {
        let damaged = [vec![0xff], vec![0xc3], vec![b'a']];
        assert_eq!(texts(damaged.into_iter()), ["\u{fffd}", "", "\u{fffd}a"]);
    }
}
