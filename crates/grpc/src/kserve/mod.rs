//! The KServe v2 protocol: named tensors in, generations out.
//!
//! A request's tensors become values ([`tensor`]), values become a question for each prompt ([`options`]), questions
//! are asked and answered at once or piece by piece ([`infer`]), many at a time on one stream ([`stream`]). What a
//! model tells of itself is [`model`].

pub mod infer;
pub mod model;
pub mod options;
pub mod outputs;
pub mod stream;
pub mod tensor;
