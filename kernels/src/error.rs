/// What a kernel can refuse. A shape error is a bug of the caller; the rest comes from candle.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{op}: {reason}")]
    Shape { op: &'static str, reason: String },
    #[error("{0}")]
    Unsupported(String),
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn shape(op: &'static str, reason: impl Into<String>) -> Self {
        Self::Shape { op, reason: reason.into() }
    }
}
