//! Models: weights, tokenizer and chat template from disk or a hub, and the forward pass over the
//! paged KV cache of [`keepwell_kernels`].

pub mod arch;
mod checkpoint;
pub mod config;
pub mod fetch;
pub mod layers;
mod load;
pub mod registry;
pub mod rope;
pub mod template;
pub mod tokenizer;
pub mod weights;

use anyhow::Result;
use candle_core::Tensor;
use keepwell_kernels::{Arena, AttentionPlan, give_back};

pub use checkpoint::Checkpoint;
pub use config::ModelConfig;
pub use fetch::fetch;
pub use load::{LoadOptions, Loaded, load, load_model};
pub use template::ChatTemplate;
pub use tokenizer::{DecodeStream, TextTokenizer};
pub use weights::WeightFormat;

/// The rows of one step. T rows, one per token, in the order of the plan.
pub struct Batch<'a> {
    /// (T) token ids.
    pub tokens: &'a [u32],
    /// Rows whose logits are wanted.
    pub logit_rows: &'a [usize],
    pub plan: &'a AttentionPlan,
    /// Is shown what passes through each layer.
    pub probe: Option<&'a Probe<'a>>,
    /// Where it begins if not at the tokens: with the states that enter this layer, as a probe saw
    /// them. The layers before write no K and V.
    pub resumed: Option<(usize, &'a Tensor)>,
}

/// Gets a layer's number and what it is about to compute with.
pub type Probe<'a> = dyn Fn(usize, Probed) -> Result<()> + 'a;

/// What a [`Probe`] is shown.
#[derive(Clone, Copy, Debug)]
pub enum Probed<'a> {
    /// (T, hidden), as they enter the layer.
    States(&'a Tensor),
    /// (T, H * D), as attention gets them.
    Queries(&'a Tensor),
}

/// A decoder that runs one ragged batch at a time.
pub trait Model: Send + Sync {
    fn config(&self) -> &ModelConfig;

    /// Writes the batch's K and V to the cache and returns the last layer's states of the wanted
    /// rows, normed: (logit_rows.len(), hidden), on the host where none is wanted.
    ///
    /// # Errors
    /// A batch that does not fit the plan or the vocabulary, or a failing kernel.
    fn hidden(&self, arena: &mut Arena, batch: &Batch) -> Result<Tensor>;

    /// hidden (rows, hidden), returns (rows, vocab).
    ///
    /// # Errors
    /// Another width, or a failing kernel.
    fn logits(&self, hidden: &Tensor) -> Result<Tensor>;

    /// Writes the batch's K and V to the cache and returns logits (logit_rows.len(), vocab).
    ///
    /// # Errors
    /// Those of its two parts.
    fn forward(&self, arena: &mut Arena, batch: &Batch) -> Result<Tensor> {
        let hidden = self.hidden(arena, batch)?;
        let logits = self.logits(&hidden)?;
        give_back(hidden);
        Ok(logits)
    }

    /// Resident bytes of all weights.
    fn bytes(&self) -> usize;
}
