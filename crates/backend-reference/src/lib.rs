//! Every op plainly, on candle tensors in f32: the oracle.
