//! Between candle tensors and slices.

use std::cell::{Cell, RefCell};

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Storage, Tensor};

use crate::{Error, Result};

/// Rows of a step whose working memory a thread keeps for the next: more sequences than most servers
/// decode at once.
pub const MOST_ROWS_KEPT: usize = 64;

/// Calls `f` with the elements of a contiguous f32 tensor on the host.
pub fn with_slice<R>(op: &'static str, x: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = x.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(Error::shape(op, format!("{:?} is not contiguous", x.shape())));
    };
    match &*storage {
        Storage::Cpu(CpuStorage::F32(data)) => Ok(f(&data[start..end])),
        _ => Err(Error::shape(op, format!("expected f32 on the host, got {:?}", x.dtype()))),
    }
}

/// A host tensor of the given shape (rows, columns) that takes over `data`.
pub fn from_vec(data: Vec<f32>, shape: (usize, usize)) -> Result<Tensor> {
    Ok(Tensor::from_vec(data, shape, &Device::Cpu)?)
}

/// A host tensor of the given shape (rows, columns) whose elements `fill` writes: they hold anything.
/// It is one that was given back, where there is one of the shape.
pub fn output(
    op: &'static str,
    shape: (usize, usize),
    fill: impl FnOnce(&mut [f32]) -> Result<()>,
) -> Result<Tensor> {
    if let Some(spare) = take_spare(shape) {
        return refill(op, spare, fill);
    }
    let mut data = vec![0f32; shape.0 * shape.1];
    fill(&mut data)?;
    from_vec(data, shape)
}

/// The same for who reads none of the elements: large results need no zeros first.
///
/// # Safety
/// `fill` gets room for rows * columns elements, and writes them all.
pub unsafe fn unread_output(
    op: &'static str,
    shape: (usize, usize),
    fill: impl FnOnce(*mut f32),
) -> Result<Tensor> {
    if let Some(spare) = take_spare(shape) {
        return refill(op, spare, |data| {
            fill(data.as_mut_ptr());
            Ok(())
        });
    }
    let len = shape.0 * shape.1;
    let mut data = Vec::with_capacity(len);
    fill(data.as_mut_ptr());
    // SAFETY: there is room for so many, and `fill` has written them, as the caller promises.
    unsafe { data.set_len(len) };
    from_vec(data, shape)
}

fn refill(
    op: &'static str,
    (whole, corner): (Tensor, Tensor),
    fill: impl FnOnce(&mut [f32]) -> Result<()>,
) -> Result<Tensor> {
    let fill = Fill { op, fill: Cell::new(Some(fill)), filled: Cell::new(Ok(())) };
    corner.inplace_op1(&fill)?;
    fill.filled.into_inner()?;
    Ok(whole)
}

/// Lets a closure write all of a tensor's memory.
struct Fill<F> {
    op: &'static str,
    fill: Cell<Option<F>>,
    filled: Cell<Result<()>>,
}

impl<F: FnOnce(&mut [f32]) -> Result<()>> InplaceOp1 for Fill<F> {
    fn name(&self) -> &'static str {
        self.op
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        if let (CpuStorage::F32(data), Some(fill)) = (storage, self.fill.take()) {
            self.filled.set(fill(data));
        }
        Ok(())
    }
}

/// A result whose memory is used again.
struct Spare {
    whole: Tensor,
    /// (1, 1) of the same memory: candle allocates before it writes to anything larger in place.
    corner: Tensor,
    memory: *const f32,
    is_free: bool,
}

/// More than a layer has results of different shapes.
const MOST_SPARE: usize = 16;

thread_local!(static SPARE: RefCell<Vec<Spare>> = const { RefCell::new(Vec::new()) });

/// Takes back a result of this crate that nobody reads any more, who has a clone of it neither: the
/// thread's next result of its shape is written to its memory. So steps of as many rows as the one before
/// allocate nothing. What has many rows, is a view, or lies on a device, is freed.
pub fn give_back(x: Tensor) {
    let Some(memory) = memory(&x) else { return };
    SPARE.with_borrow_mut(|spare| {
        if let Some(known) = spare.iter_mut().find(|spare| spare.memory == memory) {
            known.is_free = true;
            return;
        }
        let Ok(corner) = x.narrow(0, 0, 1).and_then(|row| row.narrow(1, 0, 1)) else { return };
        // Steps of other numbers of rows are over.
        spare.retain(|spare| spare.whole.dims()[0] == x.dims()[0]);
        if spare.len() == MOST_SPARE {
            // Some never came back.
            spare.retain(|spare| spare.is_free);
        }
        if spare.len() < MOST_SPARE {
            spare.push(Spare { whole: x, corner, memory, is_free: true });
        }
    });
}

/// Where the numbers are of a matrix of few rows on the host that is all of its memory.
fn memory(x: &Tensor) -> Option<*const f32> {
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(data)) = &*storage else { return None };
    let is_whole = layout.contiguous_offsets() == Some((0, data.len()));
    let has_few = x.rank() == 2 && (1..=MOST_ROWS_KEPT).contains(&x.dims()[0]);
    (is_whole && has_few && !data.is_empty()).then_some(data.as_ptr())
}

/// A result of that shape and its corner.
fn take_spare((rows, cols): (usize, usize)) -> Option<(Tensor, Tensor)> {
    SPARE.with_borrow_mut(|spare| {
        let is_it = |spare: &&mut Spare| spare.is_free && spare.whole.dims() == [rows, cols];
        let spare = spare.iter_mut().find(is_it)?;
        spare.is_free = false;
        Some((spare.whole.clone(), spare.corner.clone()))
    })
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    fn filled(shape: (usize, usize), value: f32) -> Tensor {
        output("test", shape, |out| {
            out.fill(value);
            Ok(())
        })
        .unwrap()
    }

    #[test]
    fn what_is_given_back_becomes_the_next_result_of_its_shape() {
        let (small, large) = (filled((2, 3), 1.0), filled((2, 5), 2.0));
        let (at_small, at_large) = (memory(&small), memory(&large));
        give_back(small);
        give_back(large);
        let (large, small) = (filled((2, 5), 3.0), filled((2, 3), 4.0));
        assert_eq!((memory(&small), memory(&large)), (at_small, at_large));
        assert_eq!(small.to_vec2::<f32>().unwrap(), [[4.0; 3]; 2]);
        assert_ne!(memory(&filled((2, 3), 5.0)), at_small, "it was given back once");
        give_back(small.reshape((3, 2)).unwrap());
        give_back(small);
        let results = [filled((2, 3), 5.0), filled((2, 3), 6.0)];
        assert_eq!(memory(&results[0]), at_small);
        assert_ne!(memory(&results[1]), at_small, "one memory serves one result");
    }

    #[test]
    fn results_of_another_number_of_rows_are_freed() {
        give_back(filled((2, 3), 1.0));
        give_back(filled((1, 3), 1.0));
        assert!(take_spare((2, 3)).is_none() && take_spare((1, 3)).is_some());
    }

    #[test]
    fn views_large_results_and_what_are_no_floats_are_not_kept() {
        let whole = filled((4, 2), 1.0);
        give_back(whole.narrow(0, 0, 2).unwrap());
        give_back(whole.t().unwrap());
        give_back(whole.flatten_all().unwrap());
        give_back(whole.to_dtype(DType::F16).unwrap());
        give_back(filled((0, 2), 1.0));
        give_back(filled((MOST_ROWS_KEPT + 1, 2), 1.0));
        assert!(SPARE.with_borrow(Vec::is_empty));
    }

    #[test]
    fn no_more_are_kept_than_a_layer_has_and_those_that_never_come_back_make_room() {
        let shapes = || (1..=2 * MOST_SPARE).map(|cols| (4, cols));
        shapes().for_each(|shape| give_back(filled(shape, 1.0)));
        assert_eq!(SPARE.with_borrow(Vec::len), MOST_SPARE);
        let lost: Vec<_> = shapes().take(3).map(|shape| filled(shape, 1.0)).collect();
        give_back(filled((4, 100), 1.0));
        assert_eq!(SPARE.with_borrow(Vec::len), MOST_SPARE - 2);
        lost.into_iter().for_each(give_back);
        assert_eq!(SPARE.with_borrow(Vec::len), MOST_SPARE);
    }

    #[test]
    fn an_error_of_who_fills_a_result_is_the_caller_s() {
        let failed = output("test", (1, 1), |_| Err(Error::shape("test", "no")));
        assert!(failed.unwrap_err().to_string().contains("no"));
        assert_eq!(filled((0, 7), 1.0).dims(), [0, 7]);
    }
}
