//! The commands, one file each: flags, and how the pipeline's stages are put together. What they print on stdout is
//! data; everything else goes to stderr.

pub mod completion;
pub mod install;
pub mod render;
pub mod values;
pub mod version;
