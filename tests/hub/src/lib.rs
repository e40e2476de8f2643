pub mod firmware;
