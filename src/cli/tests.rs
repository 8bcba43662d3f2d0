//! Every command's examples are commands.

use super::*;
use clap::CommandFactory;

/// Words of a line as a shell has them: quotes group, a # begins a comment, |, < and > end the command.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut open) = (Vec::new(), String::new(), None, false);
    for c in line.chars() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '\'' | '"') => (quote, open) = (Some(c), true),
            (None, ' ') => {
                if open {
                    words.push(std::mem::take(&mut word));
                }
                open = false;
            }
            (None, '|' | '<' | '>' | '#') if !open => return words,
            (_, c) => {
                word.push(c);
                open = true;
            }
        }
    }
    if open {
        words.push(word);
    }
    words
}

fn check(command: &clap::Command) {
    let inner: Vec<_> = command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help").collect();
    inner.iter().for_each(|c| check(c));
    assert!(command.get_about().is_some(), "{}: no description", command.get_name());
    if !inner.is_empty() && command.get_name() != "linformer" {
        return;
    }
    let help = command.get_after_help().unwrap_or_else(|| panic!("{}: no examples", command.get_name())).to_string();
    let lines = help.lines().map(|l| l.rsplit_once("| linformer").map_or(l.trim().to_string(), |(_, end)| format!("linformer{end}")));
    let examples: Vec<String> = lines.filter(|l| l.starts_with("linformer ")).collect();
    assert!(!examples.is_empty(), "{}: no examples", command.get_name());
    for example in examples {
        if let Err(error) = Cli::try_parse_from(words(&example)) {
            panic!("{example}\n{error}");
        }
    }
}

#[test]
fn every_command_has_examples_and_they_parse() {
    check(&Cli::command());
    Cli::command().debug_assert();
}
