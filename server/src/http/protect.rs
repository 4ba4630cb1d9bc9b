//! `kv_cache.protect`: what of the prompt is never evicted.

use std::ops::Range;

use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, integer, wrong_type};
use crate::compress::Spans;

const MAX_SPANS: usize = 256;
const PATH: &str = "kv_cache.protect";
const EXPECTED: &str = "\"system\" or an array of two token positions, [start, end)";

/// What a request asks to keep.
#[derive(Clone, Debug, Default)]
pub struct Protect {
    spans: Vec<Range<usize>>,
    /// All up to the end of the system message.
    system: bool,
}

impl Protect {
    pub fn read(fields: &Fields) -> Result<Self, ApiError> {
        let mut protect = Self::default();
        let kv_cache = fields.object("kv_cache")?;
        let items = kv_cache.map(|fields| fields.array("protect")).transpose()?.flatten();
        let items = items.unwrap_or_default();
        if items.len() > MAX_SPANS {
            let message = format!("`{PATH}` has {} spans, {MAX_SPANS} at most", items.len());
            return Err(ApiError::invalid(PATH, message));
        }
        for (i, item) in items.iter().enumerate() {
            let path = format!("{PATH}[{i}]");
            match item {
                Value::Array(ends) => protect.spans.push(span(ends, &path)?),
                Value::String(name) if name == "system" => protect.system = true,
                _ => return Err(wrong_type(&path, EXPECTED)),
            }
        }
        Ok(protect)
    }

    /// # Errors
    /// It names a message: this prompt has none.
    pub fn without_messages(&self) -> Result<Spans, ApiError> {
        match self.system {
            true => {
                Err(ApiError::invalid(PATH, format!("`{PATH}`: only chats have a system message")))
            }
            false => Ok(Spans::new(self.spans.clone())),
        }
    }

    /// `system_end` tells where the system message ends, if that is asked for.
    pub fn with_system(
        &self,
        system_end: impl FnOnce() -> Result<usize, ApiError>,
    ) -> Result<Spans, ApiError> {
        let system = self.system.then(system_end).transpose()?.map(|end| 0..end);
        Ok(Spans::new(self.spans.iter().cloned().chain(system).collect()))
    }
}

/// Beyond the prompt's end it may go on: there is nothing to protect.
fn span(ends: &[Value], path: &str) -> Result<Range<usize>, ApiError> {
    let [start, end] = ends else { return Err(wrong_type(path, EXPECTED)) };
    let end_of =
        |value, nth| integer::<u32>(value, &format!("{path}[{nth}]"), 0..=i64::from(u32::MAX));
    let (start, end) = (end_of(start, 0)? as usize, end_of(end, 1)? as usize);
    if start >= end {
        let message = format!("`{path}` is empty: it ends at {end} and starts at {start}");
        return Err(ApiError::invalid(path, message));
    }
    Ok(start..end)
}

/// An error of what `protect` needs to know of the prompt.
pub fn refused(error: &anyhow::Error) -> ApiError {
    ApiError::invalid(PATH, format!("the system message cannot be told apart: {error:#}"))
}
