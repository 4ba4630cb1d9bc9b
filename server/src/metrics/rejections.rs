//! Requests that are turned away because there are too many.

use super::table::{REJECTIONS, labels};

/// vLLM's reason: as many requests wait as may.
pub const QUEUED_REQUESTS: &str = "max_num_queued_reqs";
/// vLLM's reason: as many tokens wait as may.
pub const QUEUED_TOKENS: &str = "max_num_queued_tokens";
/// Ours: as many requests are being answered as may.
pub const REQUESTS: &str = "max_requests";

pub const REASONS: [&str; 3] = [QUEUED_REQUESTS, QUEUED_TOKENS, REQUESTS];

pub fn turned_away(reason: &'static str) {
    REJECTIONS.counter(labels([("reason", reason)])).increment(1);
}
