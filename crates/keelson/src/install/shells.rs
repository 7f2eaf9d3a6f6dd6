//! What shells and `man` get: made from the command line itself, put where they look.

use super::files::{File, Kind};
use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Args)]
pub struct Options {
    /// Directory to write the pages to
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub fn man(options: Options) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(&options.directory)?;
    for (name, page) in pages() {
        std::fs::write(options.directory.join(name), page)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Those below `prefix`, which is `/usr/local` for what no package owns.
pub fn files(prefix: &Path) -> Vec<File> {
    let share = prefix.join("share");
    let completions = [
        (Shell::Bash, "bash-completion/completions/keelson"),
        (Shell::Zsh, "zsh/site-functions/_keelson"),
        (Shell::Fish, "fish/vendor_completions.d/keelson.fish"),
    ];
    let completions = completions
        .into_iter()
        .map(|(shell, path)| (path.to_owned(), completion(shell)));
    let pages = pages()
        .into_iter()
        .map(|(name, page)| (format!("man/man1/{name}"), page));
    completions
        .chain(pages)
        .map(|(path, text)| File::text(share.join(path), 0o644, Kind::Help, text))
        .collect()
}

pub fn completion(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut crate::command(), "keelson", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// A page a command, by its name.
fn pages() -> Vec<(String, String)> {
    let mut command = crate::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    add(&command, &mut pages);
    pages
}

fn add(command: &Command, pages: &mut Vec<(String, String)>) {
    let page = Man::new(command.clone()).source(format!("keelson {}", crate::version::VERSION));
    let mut text = Vec::new();
    // Into memory: it can't fail.
    if page.render(&mut text).is_ok() {
        pages.push((page.get_filename(), String::from_utf8_lossy(&text).into_owned()));
    }
    for below in command
        .get_subcommands()
        .filter(|c| !c.is_hide_set() && c.get_name() != "help")
    {
        add(below, pages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_every_shell_a_completion() {
        let files = files(Path::new("/usr/local"));
        let text = |path: &str| {
            let file = files.iter().find(|f| f.path == Path::new(path));
            match &file.unwrap_or_else(|| panic!("no {path}")).content {
                super::super::files::Content::Text(text) => text.clone(),
                _ => panic!("{path} is no text"),
            }
        };
        assert!(text("/usr/local/share/bash-completion/completions/keelson").contains("kubeconfig"));
        assert!(text("/usr/local/share/zsh/site-functions/_keelson").starts_with("#compdef keelson"));
        assert!(text("/usr/local/share/fish/vendor_completions.d/keelson.fish").contains("install"));
        assert!(text("/usr/local/share/man/man1/keelson-server.1").contains("node\\-ip"));
        assert!(text("/usr/local/share/man/man1/keelson-store-snapshot-save.1").contains("snapshot"));
        assert!(text("/usr/local/share/man/man1/keelson.1").contains("keelson\\-uninstall(1)"));
        assert!(!files.iter().any(|f| f.path.to_string_lossy().contains("help")));
    }
}
