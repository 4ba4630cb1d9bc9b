//! What the C library's allocator is asked for.

/// Threads that allocate much at a time hardly meet: two heaps serve them all.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAX_HEAPS: i32 = 2;

/// Asks that all threads share few heaps. glibc would make up to eight a core, each of which keeps
/// what its threads have freed: resident memory would creep up for hours. Where the user has set
/// `MALLOC_ARENA_MAX`, that holds. To be called before there are threads; false where nothing has
/// changed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn share() -> bool {
    if std::env::var_os("MALLOC_ARENA_MAX").is_some() {
        return false;
    }
    // SAFETY: it sets a number, under the allocator's own lock.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, MAX_HEAPS) == 1 }
}

/// Other allocators have no such number.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn share() -> bool {
    false
}

/// Returns to the system what was freed, wherever in the heaps it lies: they would keep it. It walks all that
/// is free; to be called when much was freed and little will be asked for soon.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn trim() {
    // SAFETY: it takes the allocator's own locks, and touches only what is free.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators return it by themselves, or never.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn trim() {}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    #[test]
    fn the_allocator_takes_the_number_unless_the_user_gave_one() {
        assert_eq!(super::share(), std::env::var_os("MALLOC_ARENA_MAX").is_none());
    }
}
