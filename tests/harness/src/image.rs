//! Images made from built binaries, without a registry and without an engine.
//!
//! In go programs; out comes a tar as `docker save` writes it, the same bytes for the same programs. An image is
//! two layers: what every program needs (the C library's loader, a user table, `/tmp`) and the programs. There is no
//! shell in it.

mod catalog;
mod echo;
mod elf;
mod tarball;

pub use catalog::{
    HEDDLE_IMAGES, PAUSE_IMAGE, ProgramImage, TEST_HTTP_IMAGE, VERSION, build_programs, pause_tar,
    write_images,
};
pub use echo::echo_tar;
pub use tarball::{Capabilities, Entry, Image, Layer};
