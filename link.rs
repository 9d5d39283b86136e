//! Build script of the programs that run in pods: links release builds so that less of the file has to be in memory.
//!
//! Functions that came out equal are kept once, and the list of addresses that the loader mends at start is packed: that
//! list alone is a megabyte of resident memory per process. Needs LLD, which Rust brings for this target alone, and at run
//! time glibc 2.36, which the images bring. Debug builds are linked as always.

fn main() {
    println!("cargo:rerun-if-changed=../link.rs");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|is| is == value);
    let target = is("TARGET", "x86_64-unknown-linux-gnu");
    if target && is("PROFILE", "release") {
        println!("cargo:rustc-link-arg-bins=-Wl,--icf=all,-z,pack-relative-relocs");
    }
}
