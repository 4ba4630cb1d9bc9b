use super::{Compressed, Method, Needs, Prefix, Target, evicted, exact_tokens_per_head};

/// Neighbours to each side over which attention is averaged.
const POOL_RADIUS: usize = 2;
/// Share of an even split that every head keeps.
const SAFEGUARD: f64 = 0.2;

/// The tokens with most attention from the last queries, averaged over five neighbours (SnapKV, arXiv
/// 2404.14469); the heads of a layer compete for its budget (AdaKV, arXiv 2407.11550).
pub struct SnapKv;

impl Method for SnapKv {
    fn name(&self) -> &'static str {
        "snapkv_adakv"
    }

    fn needs(&self) -> Needs {
        Needs { recent_mass: true, ..Needs::default() }
    }

    fn compress(&self, prefix: &Prefix, target: &Target) -> Compressed {
        let count = exact_tokens_per_head(prefix, target);
        let scores = prefix.map(|_, head| pool(&head.recent_mass));
        let layers = scores.chunks(prefix.num_kv_heads.max(1));
        evicted(prefix, layers.flat_map(|layer| share_out(prefix, layer, count)).collect())
    }
}

/// Kept tokens of each head of a layer that keeps `count` per head on average.
fn share_out(prefix: &Prefix, layer: &[Vec<f32>], count: usize) -> Vec<Vec<bool>> {
    let free = prefix.free();
    let safe = (SAFEGUARD * count as f64) as usize;
    let ranked = layer.iter().enumerate().flat_map(|(head, scores)| {
        let mut order: Vec<usize> = free.clone().collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        let place = move |(rank, token)| (rank < safe, scores[token], head, token);
        order.into_iter().enumerate().map(place).collect::<Vec<_>>()
    });
    let mut ranked: Vec<_> = ranked.collect();
    ranked.sort_by(|a, b| b.0.cmp(&a.0).then(b.1.total_cmp(&a.1)));
    let mut kept = vec![vec![true; prefix.num_tokens()]; layer.len()];
    kept.iter_mut().for_each(|head| head[free.clone()].fill(false));
    for (_, _, head, token) in ranked.into_iter().take(count * layer.len()) {
        kept[head][token] = true;
    }
    kept
}

fn pool(mass: &[f32]) -> Vec<f32> {
    let average = |token: usize| {
        let around = token.saturating_sub(POOL_RADIUS)..(token + POOL_RADIUS + 1).min(mass.len());
        mass[around].iter().sum::<f32>() / (2 * POOL_RADIUS + 1) as f32
    };
    (0..mass.len()).map(average).collect()
}
