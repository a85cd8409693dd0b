//! Weights on their way to a device, and the opaque handles that come back.

use std::any::Any;

use lingqu_tensor::HostTensor;

type Storage = Box<dyn Any + Send + Sync>;

/// A linear layer before upload.
#[derive(Clone, Copy)]
pub struct LinearSource<'a> {
    /// Matrices `[out_i, in]` with the same `in`, stacked by output. Formats may differ.
    pub parts: &'a [HostTensor],
    /// `[sum of out_i]` in all: one vector for each part, in order, or none at all.
    pub biases: &'a [HostTensor],
}

impl<'a> LinearSource<'a> {
    /// One matrix without bias.
    pub fn one(matrix: &'a HostTensor) -> Self {
        Self { parts: std::slice::from_ref(matrix), biases: &[] }
    }
}

/// A gated feed-forward layer (or one expert) before upload.
#[derive(Clone, Debug)]
pub struct FfnSource {
    /// `[intermediate, hidden]`
    pub gate: HostTensor,
    /// `[intermediate, hidden]`
    pub up: HostTensor,
    /// `[hidden, intermediate]`
    pub down: HostTensor,
}

macro_rules! handle {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident),* }) => {
        $(#[$doc])*
        pub struct $name {
            $($(#[$field_doc])* pub $field: usize,)*
            /// Bytes on the device.
            pub bytes: usize,
            storage: Storage,
        }

        impl $name {
            /// For backends.
            pub fn new<T: Any + Send + Sync>(
                [$($field),*]: [usize; handle!(@count $($field)*)],
                bytes: usize,
                storage: T,
            ) -> Self {
                Self { $($field,)* bytes, storage: Box::new(storage) }
            }

            /// For the backend that made it.
            pub fn storage<T: 'static>(&self) -> &T {
                self.storage.downcast_ref().expect("a weight of another backend")
            }
        }
    };
    (@count) => { 0 };
    (@count $head:ident $($tail:ident)*) => { 1 + handle!(@count $($tail)*) };
}

handle! {
    /// A table, an embedding, a linear layer, or one matrix per head.
    Weight {
        /// 1, or the number of matrices.
        heads,
        /// Outputs of a linear layer, rows of a table.
        rows,
        /// Inputs of a linear layer, width of a table.
        cols
    }
}
handle! {
    /// What an adapter adds to a linear layer.
    LowRank {
        /// The largest of its parts.
        rank,
        /// Where the outputs that it changes end.
        rows,
        /// Inputs of the layer.
        cols
    }
}
handle! {
    /// A gated feed-forward layer.
    FfnWeights { hidden, intermediate }
}
handle! {
    /// Routed experts of one layer.
    ExpertWeights { experts, hidden, intermediate }
}
