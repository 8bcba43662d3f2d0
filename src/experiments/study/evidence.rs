//! What lies in a folder of results.

use crate::experiments::results::Results;
use anyhow::{bail, Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Files that are read, wherever they lie below the folder.
const NAMES: [&str; 6] = ["results.json", "spectrum.json", "theorems.json", "shift.json", "efficiency.json", "scaling.json"];

/// Everything that was measured, by the folder below the one that was named.
#[derive(Default)]
pub struct Evidence {
    /// Of sweeps, the best rate of a grid already chosen.
    pub sweeps: BTreeMap<String, Results>,
    /// Of measurements: `spectrum`, `theorems`, `shift`, `efficiency`, `scaling`.
    pub records: BTreeMap<String, (String, Value)>,
}

impl Evidence {
    /// The files that would be read. Folders that are links are not looked into: they may lead back.
    pub fn files(dir: &Path) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let mut folders = vec![dir.to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
                let path = entry?.path();
                match path.file_name().and_then(|n| n.to_str()) {
                    _ if path.is_dir() => folders.extend((!path.is_symlink()).then_some(path)),
                    Some(name) if NAMES.contains(&name) => found.push(path),
                    _ => {}
                }
            }
        }
        found.sort();
        Ok(found)
    }

    pub fn read(dir: &Path) -> Result<Self> {
        let mut evidence = Self::default();
        for path in Self::files(dir)? {
            let folder = path.parent().and_then(|p| p.strip_prefix(dir).ok()).map(|p| p.display().to_string()).unwrap_or_default();
            if folder.is_empty() {
                bail!("{}: results lie in a folder each, expected it one folder deeper", path.display());
            }
            if path.ends_with("results.json") {
                evidence.sweeps.insert(folder, Results::read(&path)?.with_rates_chosen());
                continue;
            }
            let kind = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
            let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let value = serde_json::from_str(&text).with_context(|| format!("{}: not JSON", path.display()))?;
            evidence.records.insert(folder, (kind, value));
        }
        Ok(evidence)
    }

    /// Records of a kind, with their folders.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.records.iter().filter(move |(_, (k, _))| k == kind).map(|(folder, (_, value))| (folder.as_str(), value))
    }

    pub fn sweep(&self, name: &str) -> Option<&Results> {
        self.sweeps.get(name)
    }
}
