//! The decoder shared by the Llama and Mistral families.

use std::{cell::Cell, sync::Arc};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use keepwell_kernels::{Arena, Backend, Linear, RopeTable};

use super::{Attention, Mlp, RmsNorm, Scope, StepContext};
use crate::{Batch, Model, ModelConfig, Probed, rope, weights::Weights};

/// GGUF's own tensor for RoPE scaling: one divisor per frequency.
const ROPE_DIVISORS: &str = "rope_freqs.weight";

thread_local!(
    /// The last step's rotations, whose memory the next one uses.
    static ROPE: Cell<RopeTable> = Cell::default()
);

/// Pre-norm transformer decoder: attention and a gated MLP in each layer.
pub struct Decoder {
    config: ModelConfig,
    backend: Arc<dyn Backend>,
    embedding: Arc<dyn Linear>,
    layers: Vec<Layer>,
    norm: RmsNorm,
    /// The embedding itself when the two are tied.
    lm_head: Arc<dyn Linear>,
}

struct Layer {
    attention_norm: RmsNorm,
    attention: Attention,
    mlp_norm: RmsNorm,
    mlp: Mlp,
}

impl Decoder {
    /// # Errors
    /// A tensor is missing or does not fit the settings.
    pub fn load(
        mut config: ModelConfig,
        weights: &Weights,
        backend: Arc<dyn Backend>,
    ) -> Result<Self> {
        if weights.contains(ROPE_DIVISORS) {
            let divisors = weights.vector(ROPE_DIVISORS, config.head_dim / 2)?;
            ensure!(divisors.iter().all(|d| *d > 0.0), "`{ROPE_DIVISORS}` must be positive");
            rope::divide(&mut config.rope, &divisors);
        }
        let scope = Scope { weights, backend: &*backend, prefix: "model.".to_owned() };
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let head = |name: &str| -> Result<Arc<dyn Linear>> {
            Ok(Arc::from(backend.linear(vec![weights.matrix(name, vocab, hidden)?])?))
        };
        let embedding = head(&scope.name("embed_tokens"))?;
        let lm_head =
            if config.tied_embeddings { embedding.clone() } else { head("lm_head.weight")? };
        let layers = (0..config.num_layers)
            .map(|layer| Layer::load(&config, weights, &*backend, layer))
            .collect::<Result<_>>()?;
        let norm = RmsNorm::load(&scope, "norm", hidden, config.rms_norm_eps)?;
        Ok(Self { norm, config, backend, embedding, layers, lm_head })
    }

    /// See [`Model::hidden`].
    fn run(&self, arena: &mut Arena, batch: &Batch, rope: &RopeTable) -> Result<Tensor> {
        let Batch { plan, probe, .. } = *batch;
        let is_watched = probe.is_some() || batch.resumed.is_some();
        let step = StepContext { backend: &*self.backend, rope, plan, probe, is_watched };
        let (first, mut x) = match batch.resumed {
            Some((first, states)) => (first, states.clone()),
            None => (0, self.embedding.rows(batch.tokens)?),
        };
        for (index, layer) in self.layers.iter().enumerate().skip(first) {
            if let Some(probe) = probe {
                probe(index, Probed::States(&x))?;
            }
            let normed = layer.attention_norm.forward(step.backend, &x)?;
            let mut attended = layer.attention.attend(arena, index, &normed, &step)?;
            step.give_back(normed);
            if index + 1 == self.layers.len() {
                if batch.logit_rows.is_empty() {
                    return no_rows(self.config.hidden_size);
                }
                // Past the last attention, rows no longer meet: only the wanted ones go on.
                x = select_rows(&x, batch.logit_rows)?;
                attended = select_rows(&attended, batch.logit_rows)?;
            }
            let projected = layer.attention.project(&attended)?;
            step.give_back(attended);
            x = step.add(x, projected)?;
            let normed = layer.mlp_norm.forward(step.backend, &x)?;
            let fed_forward = layer.mlp.forward(&step, &normed)?;
            step.give_back(normed);
            x = step.add(x, fed_forward)?;
        }
        let hidden = self.norm.forward(step.backend, &x)?;
        step.give_back(x);
        Ok(hidden)
    }
}

impl Layer {
    fn load(
        config: &ModelConfig,
        weights: &Weights,
        backend: &dyn Backend,
        layer: usize,
    ) -> Result<Self> {
        let scope = Scope { weights, backend, prefix: format!("model.layers.{layer}.") };
        let norm = |name| RmsNorm::load(&scope, name, config.hidden_size, config.rms_norm_eps);
        Ok(Self {
            attention_norm: norm("input_layernorm")?,
            attention: Attention::load(&scope, config)?,
            mlp_norm: norm("post_attention_layernorm")?,
            mlp: Mlp::load(&scope, config)?,
        })
    }

    fn bytes(&self) -> usize {
        self.attention_norm.bytes()
            + self.attention.bytes()
            + self.mlp_norm.bytes()
            + self.mlp.bytes()
    }
}

impl Model for Decoder {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn hidden(&self, arena: &mut Arena, batch: &Batch) -> Result<Tensor> {
        check_batch(batch, &self.config)?;
        let mut rope = ROPE.take();
        self.config.rope.fill(&batch.plan.positions, &mut rope);
        let hidden = self.run(arena, batch, &rope);
        ROPE.set(rope);
        hidden
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let (num_rows, _) = hidden.dims2()?;
        if num_rows == 0 {
            return no_rows(self.config.vocab_size);
        }
        Ok(self.lm_head.forward(hidden)?)
    }

    fn bytes(&self) -> usize {
        let layers: usize = self.layers.iter().map(Layer::bytes).sum();
        let heads = match self.config.tied_embeddings {
            true => self.embedding.bytes(),
            false => self.embedding.bytes() + self.lm_head.bytes(),
        };
        heads + layers + self.norm.bytes()
    }
}

/// (0, width). On the host: devices refuse to allocate nothing.
fn no_rows(width: usize) -> Result<Tensor> {
    Ok(Tensor::zeros((0, width), DType::F32, &Device::Cpu)?)
}

/// x (T, C), returns (rows.len(), C).
///
/// # Errors
/// No rows: a device refuses to run no threads.
fn select_rows(x: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let (num_rows, _) = x.dims2()?;
    ensure!(!rows.is_empty(), "none of {num_rows} rows selected");
    if rows.len() == num_rows && rows.iter().copied().eq(0..num_rows) {
        return Ok(x.clone());
    }
    let ids: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
    let len = ids.len();
    Ok(x.index_select(&Tensor::from_vec(ids, len, x.device())?, 0)?)
}

fn check_batch(batch: &Batch, config: &ModelConfig) -> Result<()> {
    let &ModelConfig { vocab_size, hidden_size, num_layers, .. } = config;
    let num_rows = batch.plan.num_rows();
    if let Some((layer, states)) = batch.resumed {
        let is_whole = states.dims() == [num_rows, hidden_size] && layer < num_layers;
        ensure!(is_whole, "{:?} states cannot enter layer {layer}", states.dims());
    }
    ensure!(num_rows > 0 && batch.tokens.len() == num_rows, "tokens and plan differ in length");
    ensure!(batch.logit_rows.iter().all(|&row| row < num_rows), "a logit row is not in the batch");
    batch
        .tokens
        .iter()
        .all(|&t| (t as usize) < vocab_size)
        .then_some(())
        .with_context(|| format!("a token id lies outside the vocabulary of {vocab_size}"))
}
