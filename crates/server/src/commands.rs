//! One file for each command of the command line.

pub mod bench;
pub mod generate;
pub mod inspect;
pub mod score;
pub mod serve;
pub mod tokenize;
