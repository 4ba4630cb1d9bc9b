//! How much memory the KV cache gets when nobody says.

use anyhow::{Context, Result};
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

/// Share of the free memory that the cache takes: activations, the page cache of the weights and
/// the rest of the machine live from what remains.
const SHARE_OF_FREE: u64 = 2;

/// Bytes for the KV cache: half of what is free, at most what all sequences could use.
pub fn default_kv_memory(free: u64, full_context_bytes: u64, max_sequences: u64) -> u64 {
    (free / SHARE_OF_FREE).min(full_context_bytes.saturating_mul(max_sequences))
}

/// Memory that can still be had, of the machine or of the container's limit.
///
/// # Errors
/// A system that does not tell.
pub fn free_memory() -> Result<u64> {
    let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(memory)
        .context("cannot tell how much memory is free; set --kv-memory")?;
    let limit = system.cgroup_limits().map_or(u64::MAX, |limits| limits.free_memory);
    Ok(system.available_memory().min(limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_takes_half_of_what_is_free_and_no_more_than_it_can_use() {
        assert_eq!(default_kv_memory(1000, 100, 64), 500);
        assert_eq!(default_kv_memory(1000, 100, 2), 200);
        assert_eq!(default_kv_memory(1000, u64::MAX, 64), 500);
    }

    #[test]
    fn some_memory_is_free() {
        assert!(free_memory().unwrap() > 0);
    }
}
