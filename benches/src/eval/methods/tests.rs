use super::*;
use keepwell_kernels::hadamard;
use rand::{Rng, SeedableRng, rngs::StdRng};

const DIM: usize = 64;
const TOKENS: usize = 600;

/// Two layers of two heads. Keys have three outlier channels, as real ones do; attention falls off
/// steeply over tokens in random order.
fn prefix() -> Prefix {
    let mut rng = StdRng::seed_from_u64(3);
    let head = |_| {
        let mut normal = |scale: f32| -> f32 {
            (0..12).map(|_| rng.random_range(-0.5f32..0.5)).sum::<f32>() * scale
        };
        let mut vectors = |outliers: bool| {
            let mut x = Vec::new();
            for _ in 0..TOKENS {
                let mut v: Vec<f32> = (0..DIM).map(|_| normal(1.0)).collect();
                if outliers {
                    [3, 20, 41].iter().for_each(|c| v[*c] += 12.0);
                }
                hadamard::rotate(&mut v);
                x.extend(v);
            }
            x
        };
        let (keys, values) = (vectors(true), vectors(false));
        let mass: Vec<f32> = (0..TOKENS).map(|_| rng.random_range(-12f32..0.0).exp2()).collect();
        Head {
            head_dim: DIM,
            keys,
            values,
            recent_mass: mass.clone(),
            deletion: mass.iter().map(|m| m * m).collect(),
            mass,
            largest_query: vec![3.0; DIM],
        }
    };
    Prefix { heads: (0..4).map(head).collect(), num_kv_heads: 2 }
}

fn run(name: &str, prefix: &Prefix, budget: f64) -> (Compressed, f64) {
    let method = METHODS.iter().find(|m| m.name() == name).unwrap();
    let target = Target { bytes: budget * prefix.f16_bytes(), seed: 1 };
    let compressed = method.compress(prefix, &target);
    let ratio = compressed.bytes / prefix.f16_bytes();
    (compressed, ratio)
}

/// Relative squared errors of K and V over the free tokens that are kept.
fn errors(prefix: &Prefix, compressed: &Compressed) -> [f64; 2] {
    let mut sums = [[0f64; 2]; 2];
    for (head, after) in prefix.heads.iter().zip(&compressed.heads) {
        let Some((keys, values)) = &after.vectors else { continue };
        for (sum, (exact, now)) in sums.iter_mut().zip([(&head.keys, keys), (&head.values, values)])
        {
            for token in prefix.free() {
                if after.kept.as_ref().is_some_and(|kept| !kept[token]) {
                    continue;
                }
                for i in token * DIM..(token + 1) * DIM {
                    sum[0] += f64::from(exact[i] - now[i]).powi(2);
                    sum[1] += f64::from(exact[i]).powi(2);
                }
            }
        }
    }
    sums.map(|[error, power]| if power > 0.0 { error / power } else { 0.0 })
}

fn share_kept(prefix: &Prefix, compressed: &Compressed) -> f64 {
    let kept = compressed
        .heads
        .iter()
        .map(|head| head.kept.as_ref().map_or(TOKENS, |kept| kept.iter().filter(|k| **k).count()));
    kept.sum::<usize>() as f64 / (prefix.heads.len() * TOKENS) as f64
}

#[test]
fn names_are_unique() {
    let names: std::collections::HashSet<_> = METHODS.iter().map(|m| m.name()).collect();
    assert_eq!(names.len(), METHODS.len());
}

#[test]
fn no_method_touches_the_protected_tokens_or_changes_a_shape() {
    let prefix = prefix();
    for method in METHODS {
        let (compressed, _) = run(method.name(), &prefix, 0.2);
        assert_eq!(compressed.heads.len(), 4);
        for (head, after) in prefix.heads.iter().zip(&compressed.heads) {
            for token in (0..TOKENS).filter(|t| !prefix.free().contains(t)) {
                let channels = token * DIM..(token + 1) * DIM;
                if let Some((keys, values)) = &after.vectors {
                    assert_eq!(keys[channels.clone()], head.keys[channels.clone()]);
                    assert_eq!(values[channels.clone()], head.values[channels]);
                    assert_eq!(keys.len(), head.keys.len());
                }
                assert!(after.kept.as_ref().is_none_or(|kept| kept[token]), "{}", method.name());
            }
        }
    }
}

#[test]
fn no_method_reads_more_than_it_says() {
    let whole = prefix();
    for method in METHODS {
        let mut told = whole.clone();
        for head in &mut told.heads {
            let Needs { mass, recent_mass, deletion } = method.needs();
            for (is_told, field) in [
                (mass, &mut head.mass),
                (mass, &mut head.largest_query),
                (recent_mass, &mut head.recent_mass),
                (deletion, &mut head.deletion),
            ] {
                field.truncate(if is_told { usize::MAX } else { 0 });
            }
        }
        let [a, b] = [&whole, &told].map(|prefix| run(method.name(), prefix, 0.2).0);
        for (a, b) in a.heads.iter().zip(&b.heads) {
            assert!(a.vectors == b.vectors && a.kept == b.kept, "{}", method.name());
        }
    }
}

#[test]
fn methods_with_a_budget_fill_it_and_never_exceed_it() {
    let prefix = prefix();
    for method in METHODS.iter().filter(|m| !m.is_fixed()) {
        for budget in [0.3, 0.2, 0.15] {
            let (_, ratio) = run(method.name(), &prefix, budget);
            assert!(ratio <= budget + 1e-9 && ratio > 0.95 * budget, "{} {ratio}", method.name());
        }
    }
}

#[test]
fn fixed_formats_take_the_bytes_of_their_formulas() {
    let prefix = prefix();
    let protected = 68.0 * 256.0;
    let share = |token: f64| (protected + 532.0 * token) / (600.0 * 256.0);
    for (name, expected) in [
        ("full", 1.0),
        ("uniform_k8v8", share(132.0)),
        ("uniform_k8v4", share(100.0)),
        ("uniform_k4v4", share(68.0)),
        ("uniform_k3v3", share(52.0)),
        ("uniform_k2v2", share(36.0)),
        // Codes of K and V; per token of V two groups of four bytes; per 32 tokens of K, of which the
        // last group is short, four bytes a channel.
        ("kivi_2", share(32.0 + 8.0 + 17.0 * 64.0 * 4.0 / 532.0)),
        ("kivi_4", share(64.0 + 8.0 + 17.0 * 64.0 * 4.0 / 532.0)),
        ("mikv", share((106.0 * 144.0 + 426.0 * 48.0 + 128.0) / 532.0)),
    ] {
        let (_, ratio) = run(name, &prefix, 0.2);
        assert!((ratio - expected).abs() < 1e-9, "{name}: {ratio} {expected}");
    }
}

#[test]
fn quantizers_leave_the_errors_expected_of_them() {
    let prefix = prefix();
    for (name, key, value) in [
        ("full", 0.0..1e-9, 0.0..1e-9),
        ("uniform_k8v8", 1e-6..1e-4, 1e-6..1e-4),
        ("uniform_k4v4", 0.005..0.012, 0.007..0.012),
        ("uniform_k3v3", 0.02..0.04, 0.025..0.04),
        ("uniform_k2v2", 0.07..0.13, 0.09..0.13),
        // Three outlier channels hold most of the power of K: per channel they cost nothing.
        ("kivi_4", 1e-4..0.003, 0.005..0.02),
        ("kivi_2", 0.005..0.06, 0.1..0.4),
        ("mikv", 0.01..0.3, 0.1..0.4),
    ] {
        let (compressed, _) = run(name, &prefix, 0.2);
        let [k, v] = errors(&prefix, &compressed);
        assert!(key.contains(&k) && value.contains(&v), "{name}: {k} {v}");
    }
}

#[test]
fn more_budget_means_less_loss() {
    let prefix = prefix();
    for method in METHODS.iter().filter(|m| !m.is_fixed()) {
        let loss = |budget| {
            let (compressed, _) = run(method.name(), &prefix, budget);
            let [key, value] = errors(&prefix, &compressed);
            1.0 - share_kept(&prefix, &compressed) + key + value
        };
        assert!(loss(0.2) > loss(0.4), "{}", method.name());
    }
}

#[test]
fn attention_decides_where_the_method_says_so() {
    let prefix = prefix();
    let mass_kept = |name| {
        let (compressed, _) = run(name, &prefix, 0.25);
        let heads = prefix.heads.iter().zip(&compressed.heads);
        let kept = |(head, after): (&Head, &CompressedHead)| -> f32 {
            let kept = after.kept.as_ref().unwrap();
            head.mass.iter().zip(kept).filter(|(_, kept)| **kept).map(|(m, _)| m).sum()
        };
        let total: f32 = prefix.heads.iter().flat_map(|head| &head.mass).sum();
        heads.map(kept).sum::<f32>() / total
    };
    for (name, least) in [("rdkv", 0.9), ("diffkv", 0.9), ("h2o", 0.55), ("snapkv_adakv", 0.4)] {
        assert!(mass_kept(name) > least, "{name}: {}", mass_kept(name));
    }
    assert!(mass_kept("random_evict") < 0.35);
}

#[test]
fn the_balancer_makes_keys_with_outlier_channels_cheaper_to_round() {
    // Large queries where keys are small: the balancer lifts what matters.
    let prefix = prefix();
    let (compressed, _) = run("mikv", &prefix, 0.2);
    let mut plain = prefix.clone();
    plain.heads.iter_mut().for_each(|head| head.largest_query.fill(0.0));
    let (unbalanced, _) = run("mikv", &plain, 0.2);
    assert!(errors(&prefix, &compressed)[0] != errors(&prefix, &unbalanced)[0]);
}

#[test]
fn the_same_seed_drops_the_same_tokens() {
    let prefix = prefix();
    let kept = || run("random_evict", &prefix, 0.2).0.heads[1].kept.clone().unwrap();
    assert_eq!(kept(), kept());
}
