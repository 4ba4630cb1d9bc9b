//! Products with packed weights: how the work is cut, and who may write where.

use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;

use super::{
    OP, check_ids, check_input,
    ggml::BLOCK,
    packed::{Activations, Block, LANES, Packed},
};
use crate::{
    Linear, Result,
    tensor::{from_vec, with_slice},
};

/// The two inner loops of a quantized product, for one instruction set.
pub trait Kernel: Copy + Send + Sync + 'static {
    /// Codes whole blocks as [`super::packed::quantize`] does: codes, scales, sums.
    fn quantize(self, x: &[[f32; BLOCK]], out: (&mut [[i8; BLOCK]], &mut [f32], &mut [f32]));

    /// The products of some rows of x with one panel: y (rows.len(), 16).
    fn panel<const LINES: usize>(
        self,
        panel: &[Block<LINES>],
        x: &Activations,
        rows: Range<usize>,
        y: &mut [[f32; LANES]],
    );
}

/// Rows of x that pass over a panel together: their codes stay in L2, the panel in L1.
const ROWS_PER_TASK: usize = 64;
/// Multiplications that pay for handing work to another thread, which takes some microseconds.
const MIN_TASK_WORK: usize = 1 << 17;
/// More tasks than threads, so that one delayed thread does not hold up all.
const TASKS_PER_THREAD: usize = 4;

/// Packed weights and the kernel that multiplies with them.
pub struct Quantized<K, const LINES: usize> {
    pub kernel: K,
    pub weights: Packed<LINES>,
}

impl<K: Kernel, const LINES: usize> Linear for Quantized<K, LINES> {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let num_rows = check_input(x, self.weights.cols)?;
        let y = with_slice(OP, x, |x| self.product(&self.quantize(x, num_rows), num_rows))?;
        from_vec(y, (num_rows, self.weights.rows))
    }

    fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        check_ids(ids, self.weights.rows)?;
        let cols = self.weights.cols;
        let mut out = vec![0f32; ids.len() * cols];
        for (&id, out) in ids.iter().zip(out.chunks_exact_mut(cols)) {
            self.weights.dequantize(id as usize, out);
        }
        from_vec(out, (ids.len(), cols))
    }

    fn bytes(&self) -> usize {
        self.weights.bytes()
    }
}

impl<K: Kernel, const LINES: usize> Quantized<K, LINES> {
    fn quantize(&self, x: &[f32], num_rows: usize) -> Activations {
        let num_blocks = self.weights.cols / BLOCK;
        let mut out = Activations::zeros(num_rows, num_blocks);
        let (x, _) = x.as_chunks::<BLOCK>();
        let chunk = num_blocks * ROWS_PER_TASK;
        let parts = (&mut out.codes[..], &mut out.scales[..], &mut out.sums[..]);
        if num_rows <= ROWS_PER_TASK {
            self.kernel.quantize(x, parts);
        } else {
            x.par_chunks(chunk)
                .zip(parts.0.par_chunks_mut(chunk))
                .zip(parts.1.par_chunks_mut(chunk).zip(parts.2.par_chunks_mut(chunk)))
                .for_each(|((x, codes), (scales, sums))| {
                    self.kernel.quantize(x, (codes, scales, sums));
                });
        }
        out
    }

    /// y (M, out)
    fn product(&self, x: &Activations, num_rows: usize) -> Vec<f32> {
        let len = num_rows * self.weights.rows;
        let mut y = Vec::<f32>::with_capacity(len);
        let tiles = Tiles { start: y.as_mut_ptr(), width: self.weights.rows };
        let grid = Grid::new(num_rows, self.weights.num_panels(), self.weights.cols);
        if grid.num_tasks() == 1 {
            self.task(x, 0..num_rows, 0..self.weights.num_panels(), &tiles);
        } else {
            (0..grid.num_tasks()).into_par_iter().with_max_len(1).for_each(|i| {
                let (rows, panels) = grid.task(i);
                self.task(x, rows, panels, &tiles);
            });
        }
        // SAFETY: the tasks of the grid cover every row and panel, and each wrote its part.
        unsafe { y.set_len(len) };
        y
    }

    fn task(&self, x: &Activations, rows: Range<usize>, panels: Range<usize>, y: &Tiles) {
        let mut tile = [[0f32; LANES]; ROWS_PER_TASK];
        let tile = &mut tile[..rows.len()];
        for panel in panels {
            self.kernel.panel(self.weights.panel(panel), x, rows.clone(), tile);
            let col = panel * LANES;
            let width = LANES.min(self.weights.rows - col);
            for (row, values) in rows.clone().zip(&*tile) {
                // SAFETY: the row and the columns are inside y, and the tasks of a grid share none.
                unsafe { y.write(row, col, &values[..width]) };
            }
        }
    }
}

/// The result of a product, written by several threads.
struct Tiles {
    start: *mut f32,
    width: usize,
}

// SAFETY: the only access is `write`, whose callers write disjoint places.
unsafe impl Sync for Tiles {}

impl Tiles {
    /// # Safety
    /// `row` and `col..col + values.len()` are inside the result; nobody else writes there.
    unsafe fn write(&self, row: usize, col: usize, values: &[f32]) {
        // SAFETY: as promised by the caller.
        unsafe {
            let to = self.start.add(row * self.width + col);
            to.copy_from_nonoverlapping(values.as_ptr(), values.len());
        }
    }
}

/// The rows of x and the panels of W, cut into tasks.
struct Grid {
    num_rows: usize,
    num_panels: usize,
    row_parts: usize,
    panel_parts: usize,
}

impl Grid {
    fn new(num_rows: usize, num_panels: usize, cols: usize) -> Self {
        let row_parts = num_rows.div_ceil(ROWS_PER_TASK);
        let work = num_rows * num_panels * LANES * cols;
        let wanted =
            (work / MIN_TASK_WORK).clamp(1, rayon::current_num_threads() * TASKS_PER_THREAD);
        let panel_parts = wanted.div_ceil(row_parts.max(1)).min(num_panels);
        Self { num_rows, num_panels, row_parts, panel_parts }
    }

    fn num_tasks(&self) -> usize {
        self.row_parts * self.panel_parts
    }

    fn task(&self, index: usize) -> (Range<usize>, Range<usize>) {
        (
            part(self.num_rows, self.row_parts, index / self.panel_parts),
            part(self.num_panels, self.panel_parts, index % self.panel_parts),
        )
    }
}

/// Part `index` of `0..len`, cut into `parts` that differ by one at most.
fn part(len: usize, parts: usize, index: usize) -> Range<usize> {
    index * len / parts..(index + 1) * len / parts
}
