//! A real client over loopback against a real server and engine, on a toy model.

mod bounds;
mod errors;
mod generate;
mod lifecycle;
mod server;
mod structured;
mod toy;
