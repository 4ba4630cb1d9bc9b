use crate::{Arena, Move};
pub fn compact(_arena: &mut Arena, _moves: &[Move]) {}
