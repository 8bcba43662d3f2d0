//! Checkpoints: a folder `step-00001000` with weights, optimizer state, the loop's own state, and a manifest.
//!
//! It counts only if its manifest's sizes and hashes agree: [`super::saver`] writes the manifest last. `step-00001000.old`
//! is what stood under the name before, if a crash came between two renames.

use super::state::{State, FORMAT};
use crate::durable::{verify, SealError};
use crate::model::weights::{WeightsError, WeightsFile};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What a manifest names, in the order of writing.
pub const FILES: [&str; 3] = ["state.json", "model.safetensors", "optimizer.safetensors"];

/// Why a checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{path}: {source}; earlier checkpoints are unchanged")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path}: {free} bytes are free, but a checkpoint needs {needed}: make room, or choose another run.dir")]
    NoRoom { path: PathBuf, free: u64, needed: u64 },
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}: {source}; a checkpoint that cannot be read may be whole: mount its disk, correct its permissions, or move it away")]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{path}: {message}")]
    Invalid { path: PathBuf, message: String },
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

impl CheckpointError {
    /// What is missing or cut off is damaged; any other failure (no permission, a disk that fails) says nothing of what is there.
    fn read(path: PathBuf, source: io::Error) -> Self {
        let leads_nowhere = |path: &Path| path.is_symlink() && !path.exists();
        match source.kind() {
            // A link to a disk that is not mounted.
            io::ErrorKind::NotFound if leads_nowhere(&path) || path.parent().is_some_and(leads_nowhere) => {
                Self::Unreadable { path, source }
            }
            io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => Self::Read { path, source },
            _ => Self::Unreadable { path, source },
        }
    }
}

impl From<SealError> for CheckpointError {
    fn from(error: SealError) -> Self {
        match error {
            SealError::Read { path, source } => Self::read(path, source),
            SealError::Broken { path, message } => Self::Invalid { path, message },
        }
    }
}

/// A checkpoint that was found valid.
pub struct Checkpoint {
    pub folder: PathBuf,
    pub state: State,
}

impl Checkpoint {
    /// The newest valid checkpoint below `folder`, if any; damaged ones are named in the second list. Where something cannot be read, it
    /// alone is named and no checkpoint given: it may be a newer one, and whole.
    pub fn latest(folder: &Path) -> (Option<Self>, Vec<String>) {
        Self::to_resume(folder).unwrap_or_else(|error| (None, vec![error.to_string()]))
    }

    /// The same for a run that goes on from it, or begins if there is none, and so overwrites what comes after: what cannot be read
    /// is an error.
    pub fn to_resume(folder: &Path) -> Result<(Option<Self>, Vec<String>), CheckpointError> {
        let found = find(folder).map_err(|source| CheckpointError::Unreadable { path: folder.into(), source })?;
        let mut damaged = Vec::new();
        for (_, path) in found.into_iter().rev() {
            match Self::open(&path) {
                Ok(checkpoint) => return Ok((Some(checkpoint), damaged)),
                Err(error @ CheckpointError::Unreadable { .. }) => return Err(error),
                Err(error) => damaged.push(error.to_string()),
            }
        }
        Ok((None, damaged))
    }

    /// Checks a checkpoint's folder against its manifest.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let format = verify(folder, &FILES, 1..=FORMAT)?;
        let path = folder.join(FILES[0]);
        let text = fs::read_to_string(&path).map_err(|source| CheckpointError::read(path.clone(), source))?;
        let state = State::read(&text, format).map_err(|message| CheckpointError::Invalid { path, message })?;
        Ok(Self { folder: folder.into(), state })
    }

    pub fn weights(&self) -> Result<WeightsFile, WeightsError> {
        WeightsFile::open(&self.folder.join(FILES[1]))
    }

    pub fn optimizer(&self) -> Result<WeightsFile, WeightsError> {
        WeightsFile::open(&self.folder.join(FILES[2]))
    }
}

/// The folder's name of a step.
pub fn step_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// Checkpoint folders by step, ascending; at one step the replaced one (`.old`) before the new one. None if there is no `folder`.
fn find(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        // A link that leads nowhere is another matter: what it leads to may be a disk that is not mounted.
        Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(folder).is_err() => return Ok(Vec::new()),
        entries => entries?.collect::<io::Result<Vec<_>>>()?,
    };
    let step_of = |path: PathBuf| {
        let name = path.file_name()?.to_str()?.strip_prefix("step-")?;
        let (digits, is_new) = name.strip_suffix(".old").map_or((name, true), |digits| (digits, false));
        Some((digits.parse::<u64>().ok()?, is_new, path))
    };
    let mut found: Vec<_> = entries.into_iter().filter_map(|e| step_of(e.path())).collect();
    found.sort();
    Ok(found.into_iter().map(|(step, _, path)| (step, path)).collect())
}

/// The same, to tidy up: what cannot be read is left alone.
pub(super) fn list(folder: &Path) -> Vec<(u64, PathBuf)> {
    find(folder).unwrap_or_default()
}

/// Renames every checkpoint after `step` out of the way: a run that goes on from there makes its own. They are damaged, or
/// were left behind on purpose.
pub fn set_aside_after(folder: &Path, step: u64) -> io::Result<()> {
    for (_, path) in find(folder)?.into_iter().filter(|(later, _)| *later > step) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let aside = folder.join(format!("abandoned-{name}"));
        if aside.exists() {
            fs::remove_dir_all(&aside)?;
        }
        fs::rename(path, aside)?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Written by the first release of the form, by `linformer pretrain` on the config beside it.
    #[test]
    fn a_checkpoint_of_the_first_format_loads() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoint_format_1");
        let checkpoint = Checkpoint::latest(&folder).0.unwrap();
        assert_eq!((checkpoint.state.step, checkpoint.state.tokens), (3, 192));
        assert_eq!(checkpoint.state.best().unwrap().step, 3);
        let config = crate::train::run::read_config(&folder).unwrap();
        let mut parameters = crate::model::Parameters::new(0, tch::Device::Cpu);
        let encoder = crate::model::Encoder::new(&mut parameters, &config.model);
        crate::model::MaskedLmHead::new(&mut parameters, &config.model, encoder.word_embeddings());
        let loaded = checkpoint.weights().unwrap().load_into(&parameters, crate::model::weights::Select::All).unwrap();
        assert_eq!(loaded, parameters.iter().count());
        crate::train::optimizer::Optimizer::new(&parameters, &config.train).load(&checkpoint.optimizer().unwrap()).unwrap();
    }

    #[test]
    fn the_replaced_checkpoint_stands_in_until_the_new_one_is_there() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["step-00000003", "step-00000006.old", "step-00000006", "step-x", "step-00000007.tmp", "abandoned-step-00000009"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let names =
            || list(folder.path()).into_iter().map(|(_, p)| p.file_name().unwrap().to_str().unwrap().to_string()).collect::<Vec<_>>();
        assert_eq!(names(), ["step-00000003", "step-00000006.old", "step-00000006"]);
        set_aside_after(folder.path(), 3).unwrap();
        assert_eq!(names(), ["step-00000003"]);
    }
}
