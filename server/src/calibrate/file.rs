//! A calibration as bytes: one safetensors file.
//!
//! Tensors, all F32, H heads of size D and T tiers: `means` (H, D), `keys` and `queries` (H, D, D),
//! all three absent without a basis; `key_prices` and `value_prices` (H, T), `evicted` and
//! `unforeseen` (H), where H may be 1. What is not a tensor stands in the header's metadata. A checksum covers all of it: a
//! flipped bit would otherwise be just another number.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use keepwell_kernels::{KeyBasis, PerTier, TIERS, Tier};
use safetensors::{Dtype, SafeTensors, serialize, tensor::TensorView};
use sha2::{Digest, Sha256};

use super::{Calibration, key::hex};
use crate::compress::{HeadPrices, Prices};

/// To be raised when the layout of the file, or what its numbers mean, changes.
pub const VERSION: &str = "5";

/// More than names, shapes and sentences take.
const MAX_HEADER: usize = 1 << 20;

/// What the model says the tensors must be.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Layers times KV heads.
    pub num_heads: usize,
    pub head_dim: usize,
}

impl Shape {
    /// No calibration of this model is longer, so that nothing longer needs to be read.
    pub fn max_bytes(self) -> usize {
        let Self { num_heads, head_dim } = self;
        let numbers = head_dim + 2 * head_dim * head_dim + 2 * TIERS.len() + 2;
        num_heads * numbers * size_of::<f32>() + MAX_HEADER
    }
}

/// The file's bytes.
///
/// # Errors
/// A number is not finite.
pub fn encode(calibration: &Calibration, model: &str) -> Result<Vec<u8>> {
    let tensors = tensors(calibration);
    for (name, (_, numbers)) in &tensors {
        ensure!(numbers.iter().all(|x| x.is_finite()), "a number of `{name}` is not finite");
    }
    let bytes = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let tensors: Vec<_> =
        tensors.into_iter().map(|(name, (shape, x))| (name, shape, bytes(&x))).collect();
    let mut notes = HashMap::from([
        ("version".to_owned(), VERSION.to_owned()),
        ("tiers".to_owned(), tier_names()),
        ("model".to_owned(), model.to_owned()),
        ("refused".to_owned(), serde_json::to_string(&calibration.refused)?),
    ]);
    let data = tensors.iter().map(|(name, _, bytes)| (*name, &**bytes));
    notes.insert("sha256".to_owned(), checksum(&notes, data.collect()));
    let views = tensors.iter().map(|(name, shape, bytes)| {
        Ok((*name, TensorView::new(Dtype::F32, shape.clone(), bytes)?))
    });
    Ok(serialize(views.collect::<Result<Vec<_>>>()?, Some(notes))?)
}

/// The calibration in a file that may hold anything.
///
/// # Errors
/// It is damaged, of another version or tiers, or does not fit the model.
pub fn decode(bytes: &[u8], shape: Shape) -> Result<Calibration> {
    let tensors = SafeTensors::deserialize(bytes)?;
    let (_, header) = SafeTensors::read_metadata(bytes)?;
    let notes = header.metadata().clone().unwrap_or_default();
    let note = |name: &str| notes.get(name).with_context(|| format!("it has no `{name}`"));
    ensure!(note("version")? == VERSION, "it is of version {}, not {VERSION}", note("version")?);
    ensure!(*note("tiers")? == tier_names(), "it is about other tiers");
    let data = tensors.iter().map(|(name, view)| (name, view.data())).collect();
    ensure!(*note("sha256")? == checksum(&notes, data), "its checksum is wrong");
    Ok(Calibration {
        basis: read_basis(&tensors, shape)?.map(Arc::new),
        prices: Arc::new(read_prices(&tensors, shape)?),
        refused: serde_json::from_str(note("refused")?)?,
    })
}

/// Shape and numbers by name.
fn tensors(calibration: &Calibration) -> BTreeMap<&'static str, (Vec<usize>, Vec<f32>)> {
    let heads = calibration.prices.heads();
    let (num_heads, num_tiers) = (heads.len(), TIERS.len());
    let by_tier = |prices: fn(&HeadPrices) -> &PerTier<f32>| -> Vec<f32> {
        heads.iter().flat_map(|head| prices(head).values().copied()).collect()
    };
    let mut tensors = BTreeMap::from([
        ("key_prices", (vec![num_heads, num_tiers], by_tier(|head| &head.key))),
        ("value_prices", (vec![num_heads, num_tiers], by_tier(|head| &head.value))),
        ("evicted", (vec![num_heads], heads.iter().map(|head| head.evicted).collect())),
        ("unforeseen", (vec![num_heads], heads.iter().map(|head| head.unforeseen).collect())),
    ]);
    if let Some(basis) = &calibration.basis {
        let (heads, dim) = (basis.num_heads(), basis.head_dim());
        tensors.insert("means", (vec![heads, dim], basis.means().to_vec()));
        tensors.insert("keys", (vec![heads, dim, dim], basis.keys().to_vec()));
        tensors.insert("queries", (vec![heads, dim, dim], basis.queries().to_vec()));
    }
    tensors
}

fn read_basis(tensors: &SafeTensors, shape: Shape) -> Result<Option<KeyBasis>> {
    if tensors.tensor("means").is_err() {
        return Ok(None);
    }
    let Shape { num_heads, head_dim } = shape;
    let means = numbers(tensors, "means", &[num_heads, head_dim])?;
    let keys = numbers(tensors, "keys", &[num_heads, head_dim, head_dim])?;
    let queries = numbers(tensors, "queries", &[num_heads, head_dim, head_dim])?;
    Ok(Some(KeyBasis::new(head_dim, means, keys, queries)?))
}

fn read_prices(tensors: &SafeTensors, shape: Shape) -> Result<Prices> {
    let num_heads = match tensors.tensor("evicted")?.shape() {
        [1] => 1,
        _ => shape.num_heads,
    };
    let keys = numbers(tensors, "key_prices", &[num_heads, TIERS.len()])?;
    let values = numbers(tensors, "value_prices", &[num_heads, TIERS.len()])?;
    let evicted = numbers(tensors, "evicted", &[num_heads])?;
    let unforeseen = numbers(tensors, "unforeseen", &[num_heads])?;
    let row = |head: usize| head * TIERS.len()..(head + 1) * TIERS.len();
    let by_tier = |row: &[f32]| PerTier::new(|tier: Tier| row[tier as usize]);
    let head = |head: usize| HeadPrices {
        key: by_tier(&keys[row(head)]),
        value: by_tier(&values[row(head)]),
        evicted: evicted[head],
        unforeseen: unforeseen[head],
    };
    Ok(Prices::new((0..num_heads).map(head).collect()))
}

fn numbers(tensors: &SafeTensors, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let view = tensors.tensor(name)?;
    let (dtype, found) = (view.dtype(), view.shape());
    ensure!(
        dtype == Dtype::F32 && found == shape,
        "`{name}` is {dtype:?} of shape {found:?}, not F32 of shape {shape:?}"
    );
    let (numbers, _) = view.data().as_chunks::<4>();
    let numbers: Vec<f32> = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    ensure!(numbers.iter().all(|x| x.is_finite()), "a number of `{name}` is not finite");
    Ok(numbers)
}

fn tier_names() -> String {
    TIERS.map(|info| info.name).join(",")
}

/// Of all notes but itself, and all tensors, whatever their order in the file.
fn checksum(notes: &HashMap<String, String>, data: BTreeMap<&str, &[u8]>) -> String {
    let notes: BTreeMap<_, _> = notes.iter().filter(|(name, _)| *name != "sha256").collect();
    let notes = notes.into_iter().map(|(name, text)| (name.as_bytes(), text.as_bytes()));
    let data = data.into_iter().map(|(name, bytes)| (name.as_bytes(), bytes));
    let mut hash = Sha256::new();
    for part in notes.chain(data).flat_map(|(name, content)| [name, content]) {
        // With its length, so that no part can pass for the end of the one before.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex(&hash.finalize())
}

#[cfg(test)]
mod tests;
