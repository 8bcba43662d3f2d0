//! `linformer completions` and `linformer man`: what a shell and a reader want of a program.

use super::{out, Cli};
use anyhow::{Context, Result};
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::path::PathBuf;

#[derive(Args)]
#[command(after_help = "Examples:
  linformer completions bash > ~/.local/share/bash-completion/completions/linformer
  linformer completions zsh  > ~/.zfunc/_linformer           # with fpath+=~/.zfunc before compinit in ~/.zshrc
  linformer completions fish > ~/.config/fish/completions/linformer.fish")]
pub struct CompletionsArgs {
    /// bash, zsh, fish, elvish or powershell
    shell: Shell,
}

#[derive(Args)]
#[command(after_help = "Examples:
  linformer man | man -l -                      # read it
  linformer man --out ~/.local/share/man/man1   # a page for every command")]
pub struct ManArgs {
    /// Write a page for every command into this folder instead of the main one to standard output
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

pub fn completions(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "linformer", &mut script);
    out(&String::from_utf8_lossy(&script))
}

pub fn man(args: &ManArgs) -> Result<()> {
    match &args.out {
        None => out(&page(&Cli::command())?),
        Some(folder) => {
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
            clap_mangen::generate_to(Cli::command(), folder).with_context(|| folder.display().to_string())
        }
    }
}

fn page(command: &clap::Command) -> Result<String> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
