//! `data list` and `data fetch`.

use super::{out, say};
use crate::data::catalogue::{Entry, Kind, CATALOGUE};
use crate::data::fetch::http::{Event, Patience};
use crate::data::fetch::{fetch, read_catalogue, Options, Presence};
use crate::log::progress::thousands;
use crate::table::align;
use anyhow::{bail, Result};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Args)]
pub struct ListArgs {
    /// Say everything about these
    names: Vec<String>,
    /// The data folder
    #[arg(long, default_value = "data", value_name = "DIR")]
    to: PathBuf,
    /// One JSON list, in the form that --catalogue reads
    #[arg(long)]
    json: bool,
    /// Rows of your own (docs/fetching.md)
    #[arg(long, value_name = "FILE")]
    catalogue: Option<PathBuf>,
}

#[derive(Args)]
pub struct FetchArgs {
    /// What to fetch, as named by data list; glue is all of GLUE
    #[arg(required = true)]
    names: Vec<String>,
    /// The data folder
    #[arg(long, default_value = "data", value_name = "DIR")]
    to: PathBuf,
    /// A mirror: takes the place of https://HOST in every address
    #[arg(long, env = "LINFORMER_DATA_BASE", hide_env_values = true, value_name = "URL")]
    base: Option<String>,
    /// Rows of your own (docs/fetching.md)
    #[arg(long, value_name = "FILE")]
    catalogue: Option<PathBuf>,
    /// Failures in a row before giving up
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    attempts: u32,
    /// Seconds without data after which a connection is broken off
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

pub fn list(args: &ListArgs) -> Result<()> {
    let rows = rows(args.catalogue.as_deref())?;
    let chosen = if args.names.is_empty() { rows.iter().collect() } else { choose(&rows, &args.names)? };
    if args.json {
        let rows: Vec<_> = chosen.iter().map(|entry| json(entry, &args.to)).collect::<Result<_>>()?;
        return out(&(serde_json::to_string_pretty(&rows)? + "\n"));
    }
    if !args.names.is_empty() {
        return chosen.iter().try_for_each(|entry| out(&describe(entry, &args.to)));
    }
    let header = ["name", "kind", "download", "here", "licence", "source"].map(str::to_string);
    let row = |entry: &&Entry| {
        let here = Presence::of(entry, &args.to).name();
        [&entry.name, entry.kind.name(), &size(entry.bytes()), here, &entry.licence, &entry.source()].map(str::to_string)
    };
    let mut table: Vec<_> = std::iter::once(header).chain(chosen.iter().map(row)).collect();
    // Numbers stand to the right, words to the left.
    for column in [1, 3, 4, 5] {
        let width = table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        table.iter_mut().for_each(|row| row[column] = format!("{:<width$}", row[column]));
    }
    out(&align(table.into_iter().map(Vec::from).collect()))?;
    out("linformer data list NAME says where it goes and how a config names it; linformer data fetch NAME brings it\n")
}

pub fn run(args: &FetchArgs) -> Result<()> {
    let rows = rows(args.catalogue.as_deref())?;
    let options = Options {
        to: args.to.clone(),
        base: args.base.clone().filter(|base| !base.is_empty()),
        patience: Patience { attempts: args.attempts, stall: Duration::from_secs(args.timeout) },
    };
    let chosen = choose(&rows, &args.names)?;
    let mut failed = Vec::new();
    for entry in &chosen {
        let bar = Bar::new(&entry.name);
        let fetched = fetch(entry, &options, &mut |event| bar.show(event));
        bar.clear();
        match fetched {
            Ok((folder, made)) => {
                let what = if made { "fetched" } else { "is here already" };
                out(&format!("{}: {what}: {}; {}\n", entry.name, folder.display(), config(entry, &args.to)))?;
            }
            Err(error) if chosen.len() == 1 => return Err(error.into()),
            // What stops one need not stop the next.
            Err(error) => {
                say(&format!("{}: {error}", entry.name));
                failed.push(&*entry.name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("{} of {} were not fetched: {}", failed.len(), chosen.len(), failed.join(", "));
    }
    Ok(())
}

fn rows(own: Option<&Path>) -> Result<Vec<Entry>> {
    let mut rows = own.map(read_catalogue).transpose()?.unwrap_or_default();
    rows.extend(CATALOGUE.iter().filter(|entry| !rows.iter().any(|own| own.name == entry.name)).cloned().collect::<Vec<_>>());
    Ok(rows)
}

/// The rows of these names; `glue` is all of GLUE.
fn choose<'a>(rows: &'a [Entry], names: &[String]) -> Result<Vec<&'a Entry>> {
    let mut chosen = Vec::new();
    for name in names {
        if name == "glue" {
            chosen.extend(rows.iter().filter(|e| e.kind == Kind::Task && e.about.starts_with("GLUE")));
        } else if let Some(entry) = rows.iter().find(|e| e.name == *name) {
            chosen.push(entry);
        } else {
            let near = rows.iter().max_by(|a, b| strsim::jaro(&a.name, name).total_cmp(&strsim::jaro(&b.name, name)));
            let near = near.map(|e| format!("; did you mean {}?", e.name)).unwrap_or_default();
            bail!("{name}: nothing of this name can be fetched{near} (linformer data list shows all)");
        }
    }
    Ok(chosen)
}

fn size(bytes: u64) -> String {
    match bytes {
        0 => "-".into(),
        1..=999_999 => format!("{} kB", bytes.div_ceil(1000)),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

/// What a config says: paths as they are from here.
fn config(entry: &Entry, to: &Path) -> String {
    match entry.config.split_once('=') {
        Some(("data.task", name)) => {
            let folder = to.join(&*entry.folder);
            format!("data.task={name} data.task_dir={}", folder.parent().unwrap_or(to).display())
        }
        Some((key, path)) => format!("{key}={}", to.join(path).display()),
        None => match entry.config.rsplit_once(' ') {
            Some((command, path)) => format!("{command} {}", to.join(path).display()),
            None => entry.config.to_string(),
        },
    }
}

fn describe(entry: &Entry, to: &Path) -> String {
    let mut lines = vec![
        format!("{}: {}", entry.name, entry.about),
        format!("  licence  {}", entry.licence),
        format!("  home     {}", entry.home),
        format!("  source   {}", entry.source()),
        format!("  here     {}", Presence::of(entry, to).name()),
        format!("  folder   {}", to.join(&*entry.folder).display()),
        format!("  config   {}", config(entry, to)),
    ];
    lines.extend(entry.files.iter().map(|f| format!("  SHA-256  {} ({} bytes)", f.sha256, thousands(f.bytes as f64))));
    lines.join("\n") + "\n"
}

fn json(entry: &Entry, to: &Path) -> Result<serde_json::Value> {
    let mut row = serde_json::to_value(entry)?;
    row["bytes"] = json!(entry.bytes());
    row["here"] = json!(Presence::of(entry, to).name());
    Ok(row)
}

/// A bar on a terminal; elsewhere only what went wrong.
struct Bar {
    name: String,
    bar: Option<ProgressBar>,
}

impl Bar {
    fn new(name: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5));
            if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:24.cyan/blue} {bytes}/{total_bytes} {bytes_per_sec} {eta} left")
            {
                bar.set_style(style.progress_chars("━╸─"));
            }
            bar.with_prefix(name.to_string())
        });
        Self { name: name.into(), bar }
    }

    fn show(&self, event: Event) {
        match (event, &self.bar) {
            (Event::At(at, total), Some(bar)) => {
                bar.set_length(total);
                bar.set_position(at);
            }
            (Event::At(..), None) => {}
            (Event::Retry { reason, pause }, bar) => {
                let line = format!("{}: {reason}; trying again in {:.1} s", self.name, pause.as_secs_f64());
                match bar {
                    Some(bar) => bar.println(line),
                    None => say(&line),
                }
            }
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
