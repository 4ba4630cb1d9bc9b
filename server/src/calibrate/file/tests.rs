use super::*;

const SHAPE: Shape = Shape { num_heads: 3, head_dim: 2 };

fn prices(num_heads: usize) -> Arc<Prices> {
    let head = |head: usize| HeadPrices {
        key: PerTier::new(|tier| (head * 100 + tier as usize) as f32),
        value: PerTier::new(|tier| 0.5 / (head * 100 + tier as usize + 1) as f32),
        evicted: 30.0 + head as f32,
        unforeseen: 0.25 * head as f32,
    };
    Arc::new(Prices::new((0..num_heads).map(head).collect()))
}

fn calibration() -> Calibration {
    let numbers = |len: usize| (0..len).map(|i| i as f32 - 1.5).collect();
    let basis = KeyBasis::new(2, numbers(6), numbers(12), numbers(12)).unwrap();
    let refused = vec!["keys in \"2\" bits".to_owned()];
    Calibration { basis: Some(Arc::new(basis)), prices: prices(3), refused }
}

/// A file with these notes and tensors, and a checksum that is right.
fn file(notes: &[(&str, &str)], tensors: &[(&str, Vec<usize>, Vec<f32>)]) -> Vec<u8> {
    let tiers = tier_names();
    let mut all: HashMap<String, String> =
        [("version", VERSION), ("tiers", &tiers), ("model", "m"), ("refused", "[]")]
            .iter()
            .chain(notes)
            .map(|(name, text)| (name.to_string(), text.to_string()))
            .collect();
    let bytes = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let tensors: Vec<_> = tensors.iter().map(|(n, s, x)| (*n, s.clone(), bytes(x))).collect();
    let data = tensors.iter().map(|(name, _, bytes)| (*name, &**bytes)).collect();
    all.insert("sha256".into(), checksum(&all, data));
    let view = |shape: &[usize], bytes| TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap();
    serialize(tensors.iter().map(|(n, s, x)| (*n, view(s, x))), Some(all)).unwrap()
}

fn prices_of(num_heads: usize) -> Vec<(&'static str, Vec<usize>, Vec<f32>)> {
    let calibration = Calibration { prices: prices(num_heads), ..Calibration::default() };
    tensors(&calibration).into_iter().map(|(name, (shape, x))| (name, shape, x)).collect()
}

#[test]
fn what_was_encoded_comes_back() {
    let one_price_for_all = Calibration { prices: prices(1), ..calibration() };
    for calibration in [Calibration::default(), calibration(), one_price_for_all] {
        let bytes = encode(&calibration, "tiny").unwrap();
        assert!(bytes.len() <= SHAPE.max_bytes());
        assert_eq!(decode(&bytes, SHAPE).unwrap(), calibration);
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = encode(&calibration(), "tiny").unwrap();
    for sixteenth in 0..16 {
        assert!(decode(&bytes[..bytes.len() * sixteenth / 16], SHAPE).is_err(), "{sixteenth}");
    }
    assert!(decode(&bytes[..bytes.len() - 1], SHAPE).is_err());
}

#[test]
fn a_flipped_bit_is_refused_or_changes_nothing() {
    let calibration = calibration();
    let bytes = encode(&calibration, "tiny").unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        if let Ok(decoded) = decode(&flipped, SHAPE) {
            assert_eq!(decoded, calibration, "bit {bit}");
        }
    }
}

#[test]
fn a_header_that_claims_to_be_huge_is_refused() {
    for len in [1 << 20, 99_999_999, u64::MAX / 2, u64::MAX] {
        let mut bytes = encode(&calibration(), "tiny").unwrap();
        bytes[..8].copy_from_slice(&len.to_le_bytes());
        assert!(decode(&bytes, SHAPE).is_err(), "{len}");
    }
}

#[test]
fn another_version_or_other_tiers_are_refused() {
    let prices = prices_of(3);
    assert!(decode(&file(&[], &prices), SHAPE).is_ok());
    for notes in [("version", "0"), ("tiers", "f16,k8v8"), ("refused", "nothing")] {
        assert!(decode(&file(&[notes], &prices), SHAPE).is_err(), "{notes:?}");
    }
}

#[test]
fn shapes_that_are_not_the_models_are_refused() {
    let bytes = encode(&calibration(), "tiny").unwrap();
    assert!(decode(&bytes, Shape { num_heads: 4, head_dim: 2 }).is_err());
    assert!(decode(&bytes, Shape { num_heads: 3, head_dim: 4 }).is_err());
    for num_heads in [0, 2, 4] {
        assert!(decode(&file(&[], &prices_of(num_heads)), SHAPE).is_err(), "{num_heads}");
    }
    let mut missing = prices_of(3);
    missing.pop();
    assert!(decode(&file(&[], &missing), SHAPE).is_err());
    let mut half_a_basis = prices_of(3);
    half_a_basis.push(("means", vec![3, 2], vec![0.0; 6]));
    assert!(decode(&file(&[], &half_a_basis), SHAPE).is_err());
}

#[test]
fn numbers_that_are_not_finite_are_neither_written_nor_read() {
    for x in [f32::NAN, f32::INFINITY] {
        let mut prices = prices_of(3);
        prices[0].2[1] = x;
        assert!(decode(&file(&[], &prices), SHAPE).is_err());
        let key = PerTier::new(|_| x);
        let head = HeadPrices { key, value: PerTier::default(), evicted: 1.0, unforeseen: 0.5 };
        let prices = Arc::new(Prices::new(vec![head]));
        assert!(encode(&Calibration { prices, ..Calibration::default() }, "tiny").is_err());
    }
}
