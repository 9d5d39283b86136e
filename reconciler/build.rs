//! Rebuilds the crate when a bundled profile changes: the profiles are embedded in the binary.

fn main() {
    println!("cargo:rerun-if-changed=../profiles");
    println!("cargo:rerun-if-changed=build.rs");
}
