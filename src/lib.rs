//! placeholder
pub mod config;
pub mod eval;
pub mod model;
pub mod native;
pub mod random;
pub mod train;
