//! `cargo xtask`: what developers run besides Cargo itself. One module per command.

mod bench;
mod conformance;
mod demo;
mod down;
mod images;
mod instructions;
mod lint;
mod packages;
mod pgo;
mod test;
mod tools;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Heddle's developer commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Arguments),
    Test(test::Arguments),
    Conformance(conformance::Arguments),
    Bench(bench::Arguments),
    Instructions(instructions::Arguments),
    Pgo(pgo::Arguments),
    /// Check formatting, run clippy, and check what is depended upon; warnings are errors.
    Lint,
    Up(up::Arguments),
    Down(down::Arguments),
    Images(images::Arguments),
    Tools(tools::Arguments),
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Demo(arguments) => demo::run(arguments).await,
        Command::Test(arguments) => test::run(arguments).await,
        Command::Conformance(arguments) => conformance::run(arguments).await,
        Command::Bench(arguments) => bench::run(arguments),
        Command::Instructions(arguments) => instructions::run(&arguments),
        Command::Pgo(arguments) => pgo::run(&arguments),
        Command::Lint => lint::run(),
        Command::Up(arguments) => up::run(arguments).await,
        Command::Down(arguments) => down::run(arguments).await,
        Command::Images(arguments) => images::run(arguments).await,
        Command::Tools(arguments) => tools::run(arguments).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
