//! What developers run: `cargo xtask tidy`, `cargo xtask lists`, `cargo xtask sbom`.

mod features;
mod lists;
mod sbom;
mod security;
mod tidy;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use std::path::PathBuf;

#[derive(Parser)]
#[command(about = "What developers of Keelson run")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Checks the architecture: directions between crates, unsafe code, unfinished code, sizes of files; and that the tests
    /// named by docs/security.md exist.
    Tidy,
    /// Checks the conformance lists: known names, sorted, nothing twice, nothing lost since the last commit; and the table of
    /// features: no gate of 1.37 is missing, what shows it is there.
    Lists,
    /// Prints what the program is made of: CycloneDX, for releases.
    Sbom,
}

fn main() -> anyhow::Result<()> {
    // Where it is run, which need not be where it was built.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").context("run it by `cargo xtask`")?;
    let root = PathBuf::from(package).join("..").canonicalize()?;
    let problems = match Arguments::parse().command {
        Command::Tidy => [tidy::check(&root)?, security::check(&root)?].concat(),
        Command::Lists => [lists::check(&root)?, features::check(&root)?].concat(),
        Command::Sbom => return sbom::print(&root),
    };
    for problem in &problems {
        eprintln!("{problem}");
    }
    anyhow::ensure!(problems.is_empty(), "{} problem(s)", problems.len());
    Ok(())
}
