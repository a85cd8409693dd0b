//! Opaque handles to device memory, and views of their columns. Only the backend that made a handle may open it.

use std::any::Any;
use std::ops::Range;

use crate::ops::KvSpec;

type Storage = Box<dyn Any + Send + Sync>;

fn open<T: 'static>(storage: &Storage) -> &T {
    storage.downcast_ref().expect("a handle of another backend")
}

fn open_mut<T: 'static>(storage: &mut Storage) -> &mut T {
    storage.downcast_mut().expect("a handle of another backend")
}

/// Activations `[rows, cols]`, row-major, with room for `rows_max` rows of which the first `rows` are in use.
pub struct Buffer {
    rows: usize,
    rows_max: usize,
    cols: usize,
    storage: Storage,
}

impl Buffer {
    /// For backends: wraps memory that holds `rows_max * cols` values. No row is in use yet.
    pub fn new<T: Any + Send + Sync>(rows_max: usize, cols: usize, storage: T) -> Self {
        Self { rows: 0, rows_max, cols, storage: Box::new(storage) }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Says how many rows the next ops use.
    pub fn set_rows(&mut self, rows: usize) {
        assert!(rows <= self.rows_max, "{rows} rows in a buffer of {}", self.rows_max);
        self.rows = rows;
    }

    /// All columns, as one head.
    pub fn view(&self) -> View<'_> {
        View { buffer: self, heads: 1, head_stride: self.cols, offset: 0, len: self.cols }
    }

    /// All columns, as one head.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        ViewMut { heads: 1, head_stride: self.cols, offset: 0, len: self.cols, buffer: self }
    }

    /// For the backend that made it.
    pub fn storage<T: 'static>(&self) -> &T {
        open(&self.storage)
    }

    /// For the backend that made it.
    pub fn storage_mut<T: 'static>(&mut self) -> &mut T {
        open_mut(&mut self.storage)
    }
}

/// `[rows, heads, len]` within a buffer: element `(r, h, i)` is at `r * cols + offset + h * head_stride + i`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub buffer: &'a Buffer,
    pub heads: usize,
    pub head_stride: usize,
    pub offset: usize,
    pub len: usize,
}

/// The same, to be written.
pub struct ViewMut<'a> {
    pub buffer: &'a mut Buffer,
    pub heads: usize,
    pub head_stride: usize,
    pub offset: usize,
    pub len: usize,
}

macro_rules! narrowing {
    ($view:ident) => {
        impl<'a> $view<'a> {
            pub fn rows(&self) -> usize {
                self.buffer.rows()
            }

            /// Columns `range` of each head.
            pub fn cols(mut self, range: Range<usize>) -> Self {
                assert!(range.start <= range.end && range.end <= self.len, "columns {range:?} of {}", self.len);
                self.offset += range.start;
                self.len = range.len();
                self
            }

            /// Splits the columns of a one-head view into `heads` equal heads.
            pub fn split_heads(mut self, heads: usize) -> Self {
                assert!(self.heads == 1 && self.len % heads == 0, "{} columns in {heads} heads", self.len);
                self.heads = heads;
                self.len /= heads;
                self.head_stride = self.len;
                self
            }

            /// Whether the heads lie side by side, so that they read as one row of `heads * len` values.
            pub fn is_flat(&self) -> bool {
                self.heads == 1 || self.head_stride == self.len
            }

            /// Values of one row.
            pub fn width(&self) -> usize {
                self.heads * self.len
            }
        }
    };
}
narrowing!(View);
narrowing!(ViewMut);

/// Experts and weights chosen for each row. `[rows, top_k]` of each.
pub struct Routing {
    rows: usize,
    rows_max: usize,
    top_k: usize,
    storage: Storage,
}

impl Routing {
    /// For backends.
    pub fn new<T: Any + Send + Sync>(rows_max: usize, top_k: usize, storage: T) -> Self {
        Self { rows: 0, rows_max, top_k, storage: Box::new(storage) }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn top_k(&self) -> usize {
        self.top_k
    }

    pub fn set_rows(&mut self, rows: usize) {
        assert!(rows <= self.rows_max, "{rows} rows in a routing of {}", self.rows_max);
        self.rows = rows;
    }

    /// For the backend that made it.
    pub fn storage<T: 'static>(&self) -> &T {
        open(&self.storage)
    }

    /// For the backend that made it.
    pub fn storage_mut<T: 'static>(&mut self) -> &mut T {
        open_mut(&mut self.storage)
    }
}

/// The paged KV cache of all layers.
pub struct KvStore {
    spec: KvSpec,
    storage: Storage,
}

impl KvStore {
    /// For backends.
    pub fn new<T: Any + Send + Sync>(spec: KvSpec, storage: T) -> Self {
        Self { spec, storage: Box::new(storage) }
    }

    pub fn spec(&self) -> &KvSpec {
        &self.spec
    }

    /// For the backend that made it.
    pub fn storage<T: 'static>(&self) -> &T {
        open(&self.storage)
    }

    /// For the backend that made it.
    pub fn storage_mut<T: 'static>(&mut self) -> &mut T {
        open_mut(&mut self.storage)
    }
}

/// One step's tokens, positions and block tables on the device.
pub struct Step {
    rows: usize,
    logit_rows: usize,
    storage: Storage,
}

impl Step {
    /// For backends.
    pub fn new<T: Any + Send + Sync>(rows: usize, logit_rows: usize, storage: T) -> Self {
        Self { rows, logit_rows, storage: Box::new(storage) }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn logit_rows(&self) -> usize {
        self.logit_rows
    }

    /// For the backend that made it.
    pub fn storage<T: 'static>(&self) -> &T {
        open(&self.storage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_narrow_to_heads_and_columns() {
        let mut buffer = Buffer::new(4, 24, ());
        buffer.set_rows(2);
        let q = buffer.view().split_heads(3).cols(5..8); // [2, 3, 3] of [2, 3, 8]
        assert_eq!((q.rows(), q.heads, q.head_stride, q.offset, q.len), (2, 3, 8, 5, 3));
        assert!(!q.is_flat());
        let k = buffer.view_mut().cols(8..24).split_heads(2);
        assert_eq!((k.heads, k.head_stride, k.offset, k.len, k.width()), (2, 8, 8, 8, 16));
        assert!(k.is_flat());
    }

    #[test]
    #[should_panic(expected = "5 rows in a buffer of 4")]
    fn rows_are_bounded() {
        Buffer::new(4, 1, ()).set_rows(5);
    }
}
