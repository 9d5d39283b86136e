//! The `heddle` program; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    heddle_reconciler::cli::main()
}
