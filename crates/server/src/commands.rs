//! One file for each command of the command line.

pub mod bench;
pub mod cluster;
pub mod devices;
pub mod generate;
pub mod inspect;
pub mod kernels;
pub mod plan;
pub mod score;
pub mod serve;
pub mod tokenize;
pub mod worker;
