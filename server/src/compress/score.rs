//! From a policy's raw scores to what the price works with.

/// Evidence comes in runs of tokens (the digits of a number, a name): each token gets the largest
/// score within this distance (SnapKV pools over the same width).
const POOL_RADIUS: usize = 2;
/// Share of the head's mean mixed into each score: the queries seen are a sample, and a token that
/// they ignored may matter to the next one (DefensiveKV clamps at the mean).
const SHRINKAGE: f32 = 0.1;

/// Pools, evens out, shrinks and scales the scores of one head so that their mean is 1: heads of all
/// layers then stand on one price. The root, because the few queries seen exaggerate: what the next
/// ones look at differs less from token to token than what these did. `unforeseen`: the share that all
/// tokens get alike (see [`super::HeadPrices`]). `positions` need not be sorted.
pub fn refine(positions: &[u32], scores: &mut [f32], unforeseen: f32) {
    pool(positions, scores);
    even_out(scores, |_| 1.0, unforeseen);
}

/// [`refine`] where only the numbers of tokens with each score are known: nothing is pooled, for nobody
/// knows who is whose neighbour.
pub fn refine_counted(scores: &mut [f32], counts: &[u32], unforeseen: f32) {
    even_out(scores, |index| counts[index] as f32, unforeseen);
}

fn even_out(scores: &mut [f32], weight: impl Fn(usize) -> f32, unforeseen: f32) {
    scores.iter_mut().for_each(|score| *score = score.max(0.0).sqrt());
    let weighed = scores.iter().enumerate().map(|(index, score)| weight(index) * score);
    let total: f32 = (0..scores.len()).map(&weight).sum();
    let mean = weighed.sum::<f32>() / total.max(1.0);
    if mean <= 0.0 || !mean.is_finite() {
        scores.fill(1.0);
        return;
    }
    let alike = 1.0 - (1.0 - SHRINKAGE) * (1.0 - unforeseen);
    for score in scores {
        *score = (1.0 - alike) * *score / mean + alike;
    }
}

/// Replaces each score with the largest among positions within [`POOL_RADIUS`].
fn pool(positions: &[u32], scores: &mut [f32]) {
    let len = positions.iter().max().map_or(0, |p| *p as usize + 1);
    let mut by_position = vec![0f32; len];
    for (&position, &score) in positions.iter().zip(scores.iter()) {
        by_position[position as usize] = score;
    }
    let mut pooled: Vec<f32> = by_position.iter().map(|score| score.max(0.0)).collect();
    // Distance by distance: loops over all positions that compilers turn into vectors.
    for distance in 1..=POOL_RADIUS.min(len.saturating_sub(1)) {
        let raise = |(pooled, score): (&mut f32, &f32)| *pooled = pooled.max(*score);
        pooled.iter_mut().zip(&by_position[distance..]).for_each(raise);
        pooled[distance..].iter_mut().zip(&by_position).for_each(raise);
    }
    for (&position, score) in positions.iter().zip(scores) {
        *score = pooled[position as usize];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strong_token_lifts_its_neighbours_in_position_not_in_storage() {
        let positions = [10, 50, 11, 51, 13];
        let mut scores = [8.0, 1.0, 1.0, 1.0, 1.0];
        pool(&positions, &mut scores);
        assert_eq!(scores, [8.0, 1.0, 8.0, 1.0, 1.0]);
    }

    #[test]
    fn refined_scores_have_mean_one_and_no_zero() {
        let positions: Vec<u32> = (0..100).map(|p| p * 10).collect();
        let mut scores = vec![0f32; 100];
        scores[7] = 1e20;
        refine(&positions, &mut scores, 0.0);
        assert!((scores.iter().sum::<f32>() / 100.0 - 1.0).abs() < 1e-3);
        assert!(scores.iter().all(|s| *s >= SHRINKAGE));
    }

    #[test]
    fn what_cannot_be_foreseen_evens_scores_out() {
        let refined = |unforeseen: f32| {
            let mut scores = [0.0, 16.0];
            refine(&[0, 100], &mut scores, unforeseen);
            scores[1] / scores[0]
        };
        assert!(refined(0.0) > 2.0 * refined(0.5));
        assert_eq!(refined(1.0), 1.0);
    }

    #[test]
    fn counted_scores_are_refined_as_if_each_stood_there_so_often() {
        let mut counted = [9.0, 1.0, 4.0];
        refine_counted(&mut counted, &[1, 3, 2], 0.3);
        let mut each = [9.0, 1.0, 1.0, 1.0, 4.0, 4.0];
        refine(&[0, 100, 200, 300, 400, 500], &mut each, 0.3);
        for (counted, each) in counted.into_iter().zip([each[0], each[1], each[4]]) {
            assert!((counted - each).abs() < 1e-6, "{counted} {each}");
        }
    }

    #[test]
    fn scores_that_are_all_zero_become_equal() {
        let mut scores = [0.0; 3];
        refine(&[0, 1, 2], &mut scores, 0.5);
        assert_eq!(scores, [1.0; 3]);
    }
}
