//! A real client over loopback against a real server and engine, on a toy model.

mod bounds;
mod errors;
mod generate;
mod kserve;
mod kserve_stream;
mod lifecycle;
mod openengine;
mod server;
mod services;
mod structured;
mod toy;
