//! What `make install` asks the program for: its libraries, completions of shells, and manual pages.

use crate::command::arguments::Arguments;
use crate::util::console::say;
use crate::util::files;
use crate::{Error, Result};
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;
use plugin_api::python::{all_mapped, mapped};
use std::path::{Path, PathBuf};

/// `host completions SHELL`
pub fn completions(shell: Shell) -> Result<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "host", &mut text);
    say(String::from_utf8_lossy(&text).trim_end());
    Ok(0)
}

/// `host man --out FOLDER`: a page for the program and one for each of its commands.
pub fn pages(folder: &Path) -> Result<u8> {
    if !folder.is_dir() {
        return Err(Error::new(format!("there is no folder {}", folder.display())).fix("make it first"));
    }
    let mut program = Arguments::command().disable_help_subcommand(true);
    program.build();
    write(&program, folder)?;
    Ok(0)
}

/// `host libraries`: the shared libraries that the program runs with, one path a line.
///
/// # Errors
/// If libtorch is not among them: the system does not tell.
pub fn libraries() -> Result<u8> {
    if mapped("libtorch_cpu.so").is_none() {
        return Err(
            Error::new("where libtorch was loaded from cannot be told (/proc/self/maps)").fix("mount /proc")
        );
    }
    let is_library =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().contains(".so"));
    for library in all_mapped().iter().filter(|path| is_library(path)) {
        say(&library.display().to_string());
    }
    Ok(0)
}

fn write(command: &clap::Command, folder: &Path) -> Result<()> {
    command
        .get_subcommands()
        .filter(|inner| !inner.is_hide_set())
        .try_for_each(|inner| write(inner, folder))?;
    let (man, mut page) = (Man::new(command.clone()), Vec::new());
    let path = folder.join(man.get_filename());
    man.render(&mut page).map_err(|why| Error::file("write", &path, why))?;
    files::write_whole(&path, &page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_page_for_every_command_and_it_lists_its_flags() {
        let folder = tempfile::tempdir().expect("a folder");
        pages(folder.path()).expect("written");
        let page = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("a page");
        let visible = Arguments::command();
        for command in visible.get_subcommands().filter(|command| !command.is_hide_set()) {
            let text = page(&format!("host-{}.1", command.get_name()));
            assert!(text.contains(".SH OPTIONS") || text.contains(".SH SUBCOMMANDS"), "{text}");
        }
        assert!(page("host-train.1").replace('\\', "").contains("--epsilon"));
        assert!(page("host-data-fetch.1").contains("data"));
        assert!(!folder.path().join("host-completions.1").exists(), "it is hidden");
        let refused = pages(&folder.path().join("none")).expect_err("refused");
        assert!(refused.first_line().starts_with("there is no folder"), "{refused}");
    }

    #[test]
    fn the_completions_of_every_shell_know_the_flags() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "host", &mut text);
            assert!(String::from_utf8(text).expect("UTF-8").contains("save-examples"), "{shell}");
        }
    }
}
