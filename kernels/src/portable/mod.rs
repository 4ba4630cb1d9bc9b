//! The specification: every operation in plain Rust, written to be read.

pub mod activation;
pub mod attention;
pub mod attribution;
pub mod compact;
pub mod matmul;
pub mod segment;
pub mod write_kv;

/// Runs anywhere.
#[derive(Clone, Copy)]
pub struct Portable;

impl crate::Backend for Portable {
    fn name(&self) -> &'static str {
        "portable"
    }
}
