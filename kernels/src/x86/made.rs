//! What unpacking needs to know of a format, made once.

use std::rc::Rc;

use crate::codec::Format;

/// Format and number of channels of some vectors.
type Kind = (Format, usize);

/// Something for each block of channels of each kind of vectors.
pub struct Made<T>(Vec<(Kind, Rc<[T]>)>);

impl<T> Made<T> {
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// That of vectors of `blocks` blocks, each made by its number if they are new.
    pub fn of(&mut self, kind: Kind, blocks: usize, make: impl Fn(usize) -> T) -> Rc<[T]> {
        let Self(made) = self;
        let index = made.iter().position(|(of, _)| *of == kind).unwrap_or_else(|| {
            made.push((kind, (0..blocks).map(make).collect()));
            made.len() - 1
        });
        // A model has few formats and one head size. The last ones come first: keys and values take turns.
        let front = index.min(1);
        made.swap(front, index);
        made[front].1.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_format_and_size_is_made_once_and_found_again() {
        let mut made = Made::new();
        let sizes = [(Format::F16, 64), (Format::Int8, 64), (Format::Int8, 128)];
        let first = sizes.map(|of| made.of(of, 2, |block| (of, block)));
        for (of, first) in sizes.into_iter().zip(&first) {
            assert_eq!(**first, [(of, 0), (of, 1)]);
            let again = made.of(of, 2, |_| unreachable!("it was made"));
            assert!(Rc::ptr_eq(first, &again));
        }
    }
}
