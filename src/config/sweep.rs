//! A sweep: a base config, named variants, and a grid over any keys; the runs are every variant at every grid point.
//!
//! ```json
//! { "base": "pretrain.json", "dir": "runs/k",
//!   "variants": [ { "name": "full", "set": { "model.attention.kind": "full" } } ],
//!   "grid": { "train.seed": [0, 1, 2] } }
//! ```

use super::load::{read_object, ConfigError, Origins, Raw};
use super::schema::Config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The file.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SweepFile {
    /// A config, relative to the sweep file.
    pub base: PathBuf,
    /// Folder of the runs; empty: `runs/` and the sweep file's name.
    pub dir: PathBuf,
    pub variants: Vec<Variant>,
    /// Key and its values.
    pub grid: Map<String, Value>,
    /// Keys set in every run.
    pub set: Map<String, Value>,
    /// What is asked, for the report.
    pub about: String,
    /// Folder that gets `results.json` when the sweep is done as it stands in the file: what a report is made from.
    pub results: Option<PathBuf>,
    /// What is compared: `loss` (pretraining) or `value` (fine-tuning); empty: by the kind of the runs.
    pub measure: String,
    /// Whether a finished run of a sweep beside this one (a folder beside `dir`) with the same config is taken instead of made again.
    pub reuse: bool,
    /// Minutes that all runs take, and where.
    pub minutes: Option<f64>,
    pub machine: String,
    /// Keys on which the paper is silent, and where our value is from.
    pub silent: BTreeMap<String, String>,
    /// Numbers of others that the report sets beside the runs.
    pub published: Vec<Published>,
}

/// A number that someone else has published.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// Which model, trained on what.
    pub what: String,
    pub value: f64,
    pub unit: String,
    pub source: String,
}

/// A named set of keys.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    pub name: String,
    #[serde(default)]
    pub set: Map<String, Value>,
    /// The variant that it is compared with, seed by seed.
    #[serde(default)]
    pub against: Option<String>,
    /// What the paper has for the difference of the two.
    #[serde(default)]
    pub paper: Option<f64>,
}

/// A sweep with every run's config worked out.
pub struct Sweep {
    pub path: PathBuf,
    pub dir: PathBuf,
    pub runs: Vec<SweepRun>,
    pub file: SweepFile,
    /// Whether keys were set on the command line: its results are not those of the file.
    pub changed: bool,
}

/// One run of a sweep.
pub struct SweepRun {
    /// Unique in the sweep; the run's folder is `dir/name`.
    pub name: String,
    /// The name without the seed: runs of one group are averaged over seeds.
    pub group: String,
    /// The group that it is compared with.
    pub against: Option<String>,
    /// The paper's difference to it.
    pub paper: Option<f64>,
    /// The keys that were set, for a process of its own.
    pub raw: Map<String, Value>,
    pub config: Config,
}

impl Sweep {
    /// Reads and expands a sweep; `overrides` go on top of every run.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let origin = path.display().to_string();
        let raw = Raw { value: read_object(path)?, origins: Origins::default() };
        let file: SweepFile = raw.parse(&schema()).map_err(|e| with_origin(e, &origin))?;
        let key_error = |key: &str, message: &str| ConfigError::Key { origin: origin.clone(), key: key.into(), message: message.into() };
        if file.base.as_os_str().is_empty() {
            return Err(key_error("base", "missing, expected the name of a config"));
        }
        let base = Raw::read(&path.parent().unwrap_or_else(|| Path::new(".")).join(&file.base))?;
        let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let dir = if file.dir.as_os_str().is_empty() { PathBuf::from("runs").join(stem) } else { file.dir.clone() };
        let only = [Variant::default()];
        let variants = if file.variants.is_empty() { &only[..] } else { &file.variants };
        refuse_overrides(overrides, &file, variants)?;
        let mut runs: Vec<SweepRun> = Vec::new();
        for variant in variants {
            for point in grid_points(&file.grid).map_err(|key| key_error(&format!("grid.{key}"), "expected a list of values, not empty"))? {
                let run = expand(&base, &file, variant, &point, &dir, overrides, &origin)?;
                if runs.iter().any(|other| other.name == run.name) {
                    return Err(key_error("variants", &format!("two runs would be named {}", run.name)));
                }
                if run.name.starts_with('.') || run.name == "configs" || run.name.len() > MAX_NAME {
                    let message = format!(
                        "a run would be named \"{}\", expected at most {MAX_NAME} characters, not configs, not beginning with a dot",
                        run.name
                    );
                    return Err(key_error("variants", &message));
                }
                runs.push(run);
            }
        }
        refuse_strange(&file, &runs, &key_error)?;
        Ok(Self { path: path.into(), dir, runs, file, changed: !overrides.is_empty() })
    }
}

/// What a report would stumble over: comparisons with nothing, and notes on keys that do not exist.
fn refuse_strange(file: &SweepFile, runs: &[SweepRun], error: &dyn Fn(&str, &str) -> ConfigError) -> Result<(), ConfigError> {
    let names = |other: &String| runs.iter().any(|r| r.group == *other);
    if let Some(lost) = runs.iter().find(|r| r.against.as_ref().is_some_and(|a| !names(a))) {
        let message = format!("{} is compared with {}, which is no variant", lost.group, lost.against.as_deref().unwrap_or_default());
        return Err(error("variants", &message));
    }
    if let Some(run) = runs.iter().find(|r| r.paper.is_some() && r.against.is_none()) {
        return Err(error("variants", &format!("{} has the paper's difference, but nothing it is compared with (against)", run.group)));
    }
    if !["", "loss", "value"].contains(&file.measure.as_str()) {
        return Err(error("measure", &format!("found \"{}\", expected loss or value", file.measure)));
    }
    for key in file.silent.keys() {
        let mut raw = Raw::default();
        raw.set(key, Value::Null, "");
        raw.refuse_unknown_keys().map_err(|e| match e {
            ConfigError::Key { message, .. } => error(&format!("silent.{key}"), &message),
            other => other,
        })?;
    }
    Ok(())
}

type Point = Vec<(String, Value)>;

/// Of a file name.
const MAX_NAME: usize = 200;

/// An override that undid what tells the runs apart would make them one.
fn refuse_overrides(overrides: &[String], file: &SweepFile, variants: &[Variant]) -> Result<(), ConfigError> {
    let varied = file.grid.keys().chain(variants.iter().flat_map(|v| v.set.keys()));
    let varied: Vec<&str> = varied.map(String::as_str).chain(["run.dir"]).collect();
    for text in overrides {
        let key = text.split('=').next().unwrap_or_default();
        if let Some(clash) = varied.iter().find(|v| **v == key || v.starts_with(&format!("{key}.")) || key.starts_with(&format!("{v}."))) {
            let message = format!("cannot be set for all runs: the sweep sets {clash} for each");
            return Err(ConfigError::Key { origin: "command line".into(), key: key.into(), message });
        }
    }
    Ok(())
}

fn expand(
    base: &Raw,
    file: &SweepFile,
    variant: &Variant,
    point: &Point,
    dir: &Path,
    overrides: &[String],
    origin: &str,
) -> Result<SweepRun, ConfigError> {
    let mut raw = base.clone();
    for (key, value) in file.set.iter().chain(&variant.set) {
        raw.set(key, value.clone(), origin);
    }
    for (key, value) in point {
        raw.set(key, value.clone(), origin);
    }
    let name = run_name(&variant.name, point.iter());
    let group = run_name(&variant.name, point.iter().filter(|(key, _)| key != "train.seed"));
    raw.set("run.dir", Value::String(dir.join(&name).display().to_string()), origin);
    overrides.iter().try_for_each(|text| raw.apply(text))?;
    let keys = raw.value.clone();
    let (config, _) = raw.into_config()?;
    let against = variant.against.as_ref().map(|other| run_name(other, point.iter().filter(|(key, _)| key != "train.seed")));
    Ok(SweepRun { name, group, against, paper: variant.paper, raw: keys, config })
}

fn run_name<'a>(variant: &str, point: impl Iterator<Item = &'a (String, Value)>) -> String {
    let plain = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let safe =
        |text: String| text.chars().map(|c| if c.is_ascii_alphanumeric() || "._=-".contains(c) { c } else { '-' }).collect::<String>();
    let mut parts: Vec<String> =
        point.map(|(key, value)| safe(format!("{}={}", key.rsplit('.').next().unwrap_or(key), plain(value)))).collect();
    if !variant.is_empty() {
        parts.insert(0, safe(variant.into()));
    }
    if parts.is_empty() {
        "run".into()
    } else {
        parts.join("_")
    }
}

/// Every combination; the first key varies slowest.
fn grid_points(grid: &Map<String, Value>) -> Result<Vec<Point>, String> {
    let mut points: Vec<Point> = vec![Vec::new()];
    for (key, values) in grid {
        let values = values.as_array().filter(|v| !v.is_empty()).ok_or_else(|| key.clone())?;
        points = points.iter().flat_map(|p| values.iter().map(move |v| [p.clone(), vec![(key.clone(), v.clone())]].concat())).collect();
    }
    Ok(points)
}

fn schema() -> Map<String, Value> {
    let keys =
        ["base", "dir", "variants", "grid", "set", "about", "results", "measure", "reuse", "minutes", "machine", "silent", "published"];
    keys.into_iter().map(|key| (key.to_string(), Value::Null)).collect()
}

fn with_origin(error: ConfigError, file: &str) -> ConfigError {
    match error {
        ConfigError::Key { key, message, .. } => ConfigError::Key { origin: file.into(), key, message },
        other => other,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sweep(files: &[(&str, &str)]) -> Result<Sweep, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| std::fs::write(folder.path().join(name), text).unwrap());
        Sweep::load(&folder.path().join(files[0].0), &[])
    }

    const BASE: (&str, &str) = ("base.json", r#"{"data": {"corpus": "x"}, "model": {"attention": {"k": 8}}}"#);

    #[test]
    fn variants_times_grid_with_names_and_groups() {
        let text = r#"{"base": "base.json", "variants": [{"name": "full", "set": {"model.attention.kind": "full"}}, {"name": "lin"}],
                       "grid": {"model.attention.k": [4, 16], "train.seed": [0, 1]}}"#;
        let sweep = sweep(&[("s.json", text), BASE]).unwrap();
        let names: Vec<&str> = sweep.runs.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names.len(), 8);
        assert_eq!(names[0], "full_k=4_seed=0");
        assert_eq!(sweep.runs[7].group, "lin_k=16");
        assert_eq!(sweep.runs[7].config.train.seed, 1);
        assert_eq!(sweep.runs[7].config.run.dir, Some("runs/s/lin_k=16_seed=1".into()));
    }

    #[test]
    fn an_override_may_not_make_runs_alike() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(BASE.0), BASE.1).unwrap();
        let path = folder.path().join("s.json");
        std::fs::write(&path, r#"{"base": "base.json", "grid": {"train.seed": [0, 1]}}"#).unwrap();
        for text in ["train.seed=5", "run.dir=x"] {
            let error = Sweep::load(&path, &[text.to_string()]).err().unwrap().to_string();
            assert!(error.contains("cannot be set for all runs"), "{error}");
        }
        assert_eq!(Sweep::load(&path, &["train.max_steps=700".to_string()]).unwrap().runs.len(), 2);
    }

    #[test]
    fn a_misspelt_grid_key_is_refused_by_name() {
        let error = sweep(&[("s.json", r#"{"base": "base.json", "grid": {"model.attention.kk": [4]}}"#), BASE]).err().unwrap().to_string();
        assert!(error.contains("s.json: model.attention.kk: no such key; did you mean model.attention.k?"), "{error}");
    }
}
