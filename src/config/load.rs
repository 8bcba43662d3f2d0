//! From files and overrides to a checked [`Config`].

use super::schema::Config;
use super::strict;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Why a config was refused; always one line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{path}: cannot be read: {source}")]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{path}: line {line}, column {column}: not valid JSON: {message}")]
    Syntax { path: PathBuf, line: usize, column: usize, message: String },
    #[error("{path}: \"extends\" makes a circle")]
    Circle { path: PathBuf },
    #[error("{origin}: {key}: {message}")]
    Key { origin: String, key: String, message: String },
    #[error("{text}: not of the form key=value (for example train.seed=1)")]
    Override { text: String },
    /// Of a command's arguments.
    #[error("{0}")]
    Usage(String),
}

/// A command that was called wrongly: exit code 2.
pub fn usage(message: impl Into<String>) -> ConfigError {
    ConfigError::Usage(message.into())
}

/// Where each key was set last: a file's name or `command line`.
#[derive(Clone, Debug, Default)]
pub struct Origins(BTreeMap<String, String>);

impl Origins {
    /// The origin of a key, or of the nearest group around or inside it that was set.
    pub fn of(&self, key: &str) -> String {
        let mut prefix = key;
        loop {
            if let Some(origin) = self.0.get(prefix) {
                return origin.clone();
            }
            match prefix.rfind('.') {
                Some(dot) => prefix = &prefix[..dot],
                None => break,
            }
        }
        let inside = format!("{key}.");
        let nested = self.0.iter().find(|(k, _)| k.starts_with(&inside)).map(|(_, origin)| origin.clone());
        nested.unwrap_or_else(|| "default".into())
    }

    /// Where this very key was set, if it was.
    pub fn exact(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Whether a file or the command line set this very key.
    pub fn sets(&self, key: &str) -> bool {
        self.exact(key).is_some()
    }

    pub fn error(&self, key: &str, message: impl Into<String>) -> ConfigError {
        ConfigError::Key { origin: self.of(key), key: key.into(), message: message.into() }
    }
}

/// A merged JSON object and where its keys came from.
#[derive(Clone, Debug, Default)]
pub struct Raw {
    pub value: Map<String, Value>,
    pub origins: Origins,
}

impl Raw {
    /// Reads `path`, everything that it extends first.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let mut raw = Self::default();
        raw.read_chain(path, &mut Vec::new())?;
        Ok(raw)
    }

    fn read_chain(&mut self, path: &Path, seen: &mut Vec<PathBuf>) -> Result<(), ConfigError> {
        let identity = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        if seen.contains(&identity) {
            return Err(ConfigError::Circle { path: path.into() });
        }
        seen.push(identity);
        let mut object = read_object(path)?;
        match object.shift_remove("extends") {
            None => {}
            Some(Value::String(base)) => {
                let folder = path.parent().unwrap_or_else(|| Path::new("."));
                self.read_chain(&folder.join(base), seen)?;
            }
            Some(other) => {
                return Err(ConfigError::Key {
                    origin: path.display().to_string(),
                    key: "extends".into(),
                    message: format!("found {other}, expected a file name"),
                })
            }
        }
        self.merge(object, &path.display().to_string());
        Ok(())
    }

    /// Lays `object` over what is there; nested objects are merged, everything else replaced.
    pub fn merge(&mut self, object: Map<String, Value>, origin: &str) {
        merge_into(&mut self.value, object, "", origin, &mut self.origins.0);
    }

    /// Lays `key=value` with a dotted key over what is there. The value is JSON, or else a string.
    pub fn apply(&mut self, text: &str) -> Result<(), ConfigError> {
        let bad = || ConfigError::Override { text: text.into() };
        let (key, value) = text.split_once('=').ok_or_else(bad)?;
        if key.is_empty() || key.split('.').any(str::is_empty) {
            return Err(bad());
        }
        let value = match strict::from_str(value) {
            Ok(value) => value,
            // JSON whose text is right and whose keys are not; what is no JSON is a string.
            Err(error) if error.is_data() => {
                return Err(ConfigError::Key { origin: "command line".into(), key: key.into(), message: error.to_string() })
            }
            Err(_) => Value::String(value.into()),
        };
        self.set(key, value, "command line");
        Ok(())
    }

    /// Sets one dotted key.
    pub fn set(&mut self, key: &str, value: Value, origin: &str) {
        let nested = key.rsplit('.').fold(value, |inner, part| Value::Object(Map::from_iter([(part.to_string(), inner)])));
        if let Value::Object(object) = nested {
            self.merge(object, origin);
        }
    }

    /// The typed config: unknown keys and wrong types are refused by name, then [`Config::validate`].
    pub fn into_config(self) -> Result<(Config, Origins), ConfigError> {
        let mut config = self.parse::<Config>(&default_object())?;
        config.train.precision = config.train.precision.resolved(&config.run.device);
        config.validate(&self.origins)?;
        Ok((config, self.origins))
    }

    /// Whether every key is one of a run's.
    pub fn refuse_unknown_keys(&self) -> Result<(), ConfigError> {
        refuse_unknown(&self.value, &default_object(), "", &self.origins)
    }

    /// As `T`, whose keys are those of `schema`.
    pub fn parse<T: DeserializeOwned>(&self, schema: &Map<String, Value>) -> Result<T, ConfigError> {
        refuse_unknown(&self.value, schema, "", &self.origins)?;
        serde_path_to_error::deserialize(Value::Object(self.value.clone())).map_err(|error| {
            let key = error.path().to_string();
            self.origins.error(&key, in_words(&error.into_inner().to_string()))
        })
    }
}

/// What serde says of a wrong type, in JSON's words instead of Rust's.
fn in_words(message: &str) -> String {
    let types = [
        ("i64", "a whole number"),
        ("u64", "a whole number of at least 0"),
        ("u32", "a whole number of at least 0"),
        ("usize", "a whole number of at least 0"),
        ("f64", "a number"),
        ("a boolean", "true or false"),
        ("a string", "a text"),
        ("path string", "a path"),
    ];
    let found = message.replacen("invalid type: ", "found ", 1).replacen("invalid value: ", "found ", 1);
    match types.iter().find_map(|(rust, words)| Some(format!("{}{words}", found.strip_suffix(rust)?))) {
        Some(text) => text,
        None => found,
    }
}

/// A config from a file and overrides, checked.
pub fn load(path: &Path, overrides: &[String]) -> Result<(Config, Origins), ConfigError> {
    let mut raw = Raw::read(path)?;
    overrides.iter().try_for_each(|text| raw.apply(text))?;
    raw.into_config()
}

pub(super) fn read_object(path: &Path) -> Result<Map<String, Value>, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.into(), source })?;
    match strict::from_str(&text) {
        Ok(Value::Object(mut object)) => {
            // For editors: where the schema of this file is.
            object.shift_remove("$schema");
            Ok(object)
        }
        Ok(other) => Err(ConfigError::Syntax {
            path: path.into(),
            line: 1,
            column: 1,
            message: format!("found {other}, expected an object {{...}}"),
        }),
        Err(error) => Err(ConfigError::Syntax {
            path: path.into(),
            line: error.line(),
            column: error.column(),
            message: error.to_string().split(" at line").next().unwrap_or_default().to_string(),
        }),
    }
}

fn default_object() -> Map<String, Value> {
    match serde_json::to_value(Config::default()) {
        Ok(Value::Object(object)) => object,
        _ => Map::new(),
    }
}

fn merge_into(into: &mut Map<String, Value>, from: Map<String, Value>, prefix: &str, origin: &str, origins: &mut BTreeMap<String, String>) {
    for (name, value) in from {
        let key = dotted(prefix, &name);
        match (into.get_mut(&name), value) {
            (Some(Value::Object(inner)), Value::Object(object)) => merge_into(inner, object, &key, origin, origins),
            (_, Value::Object(object)) => {
                let mut inner = Map::new();
                origins.insert(key.clone(), origin.into());
                merge_into(&mut inner, object, &key, origin, origins);
                into.insert(name, Value::Object(inner));
            }
            (_, value) => {
                origins.insert(key, origin.into());
                into.insert(name, value);
            }
        }
    }
}

fn refuse_unknown(value: &Map<String, Value>, schema: &Map<String, Value>, prefix: &str, origins: &Origins) -> Result<(), ConfigError> {
    for (name, inner) in value {
        let key = dotted(prefix, name);
        match (schema.get(name), inner) {
            (None, _) => return Err(origins.error(&key, unknown_key(&key, name, schema, prefix))),
            (Some(Value::Object(schema)), Value::Object(inner)) => refuse_unknown(inner, schema, &key, origins)?,
            (Some(Value::Object(_)), other) => return Err(origins.error(&key, format!("found {other}, expected a group of keys {{...}}"))),
            _ => {}
        }
    }
    Ok(())
}

fn unknown_key(key: &str, name: &str, siblings: &Map<String, Value>, prefix: &str) -> String {
    let close = |candidate: &String| strsim::jaro_winkler(candidate.rsplit('.').next().unwrap_or(candidate), name);
    let nearest = |candidates: Vec<String>| candidates.into_iter().map(|c| (close(&c), c)).max_by(|a, b| a.0.total_cmp(&b.0));
    let here = nearest(siblings.keys().map(|k| dotted(prefix, k)).collect());
    let anywhere = nearest(all_keys(&default_object(), ""));
    // A right name in the wrong group is likelier than a near miss beside it.
    let best = [here, anywhere].into_iter().flatten().max_by(|a, b| a.0.total_cmp(&b.0));
    match best {
        Some((score, candidate)) if score > 0.75 && candidate != key => format!("no such key; did you mean {candidate}?"),
        _ => format!("no such key; the keys here are {}", siblings.keys().cloned().collect::<Vec<_>>().join(", ")),
    }
}

/// Every key that has a value of its own, dotted.
pub fn all_keys(object: &Map<String, Value>, prefix: &str) -> Vec<String> {
    object
        .iter()
        .flat_map(|(name, value)| {
            let key = dotted(prefix, name);
            match value {
                Value::Object(inner) => all_keys(inner, &key),
                _ => vec![key],
            }
        })
        .collect()
}

fn dotted(prefix: &str, name: &str) -> String {
    if prefix.is_empty() {
        name.into()
    } else {
        format!("{prefix}.{name}")
    }
}
