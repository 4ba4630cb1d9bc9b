//! What is measured once per model: the basis of its keys, and what each tier costs each head.

mod basis;
mod measure;
mod observe;

use std::sync::Arc;

use keepwell_kernels::KeyBasis;

use crate::compress::Prices;

pub use measure::measure;

/// The default knows nothing of the model: rotated keys, all heads alike.
#[derive(Clone, Debug, Default)]
pub struct Calibration {
    pub basis: Option<Arc<KeyBasis>>,
    pub prices: Arc<Prices>,
}
