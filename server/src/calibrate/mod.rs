//! What is measured once per model: the basis of its keys, and what each tier costs each head.

mod basis;
mod file;
mod key;
mod measure;
mod observe;
mod obtain;
mod store;
mod text;
mod window;

use std::sync::Arc;

use keepwell_kernels::KeyBasis;

pub use self::{measure::measure, obtain::obtain, text::CalibrationText};
use crate::compress::Prices;

/// The default knows nothing of the model: rotated keys, all heads alike.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calibration {
    pub basis: Option<Arc<KeyBasis>>,
    pub prices: Arc<Prices>,
    /// Formats that would break this model and that its prices rule out: a few words each, for the
    /// log.
    pub refused: Vec<String>,
}
