//! Writing checkpoints, in the background.
//!
//! Training stands still only while weights and optimizer state are copied; a thread writes the copy. The folder is
//! written under a temporary name beside its last one, every file synced, the manifest last, then renamed and the parent
//! synced. A crash or a full disk leaves a temporary folder, which is never read and is removed by the next save; earlier
//! checkpoints go only after the new one is in place.

use super::checkpoint::{list, step_name, CheckpointError, FILES};
use super::optimizer::Optimizer;
use super::state::{State, FORMAT};
use crate::durable::{publish, seal, sync_folder};
use crate::model::weights::{self, WeightsError};
use crate::model::Parameters;
use crate::native::disk::free_bytes;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use tch::{Device, Tensor};

/// Which checkpoints stay.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    pub newest: usize,
    pub best: usize,
}

/// The checkpoint is in place; what a log could not sync, if anything: then its last lines may be lost with the power.
type Saved = Result<Option<io::Error>, CheckpointError>;

/// Writes one checkpoint at a time.
pub struct Saver {
    folder: PathBuf,
    keep: Keep,
    /// false: another rank writes.
    active: bool,
    writing: Option<JoinHandle<(Copy, Saved)>>,
    /// The last copy's memory: touched already, so that the next copy is fast.
    spare: Option<Copy>,
}

/// Weights and optimizer state as they were at one step.
struct Copy {
    model: Vec<(String, Tensor)>,
    optimizer: Vec<(String, Tensor)>,
}

impl Saver {
    /// Checkpoints go into `folder`, whose parent exists.
    pub fn new(folder: &Path, keep: Keep) -> Self {
        Self { folder: folder.into(), keep, active: true, writing: None, spare: None }
    }

    /// Of a rank beside the first: saves nothing.
    pub fn idle() -> Self {
        let mut saver = Self::new(Path::new(""), Keep { newest: 1, best: 1 });
        saver.active = false;
        saver
    }

    /// Copies everything and starts to write it; an earlier save is waited for, and its outcome comes back. `logs` are synced
    /// before the checkpoint is valid, so that it never knows of more than they do.
    pub fn save(&mut self, parameters: &Parameters, optimizer: &Optimizer, state: &State, logs: Vec<File>) -> Saved {
        if !self.active {
            return Ok(None);
        }
        let earlier = self.wait()?;
        let copy = Copy::of(self.spare.take(), parameters, optimizer);
        let (folder, keep, state) = (self.folder.clone(), self.keep, state.clone());
        self.writing = Some(std::thread::spawn(move || {
            let result = write(&folder, keep, &copy, &state, &logs);
            (copy, result)
        }));
        Ok(earlier)
    }

    /// The outcome of a save that has ended meanwhile.
    pub fn check(&mut self) -> Saved {
        if self.writing.as_ref().is_some_and(JoinHandle::is_finished) {
            self.wait()
        } else {
            Ok(None)
        }
    }

    /// Waits until what was started is on the disk.
    pub fn wait(&mut self) -> Saved {
        let Some(writing) = self.writing.take() else { return Ok(None) };
        match writing.join() {
            Ok((copy, result)) => {
                self.spare = Some(copy);
                result
            }
            Err(_) => Err(CheckpointError::Write { path: self.folder.clone(), source: io::Error::other("the writing thread panicked") }),
        }
    }
}

impl Drop for Saver {
    /// However training ends, the checkpoint that was begun is finished.
    fn drop(&mut self) {
        let _ = self.wait();
    }
}

/// Bytes of one checkpoint, within a percent.
pub fn estimate(parameters: &Parameters, optimizer: &Optimizer) -> u64 {
    let elements = |tensor: &Tensor| tensor.numel() as u64;
    let model: u64 = parameters.iter().map(|p| elements(&p.tensor)).sum();
    4 * (model + optimizer.state().iter().map(|(_, t)| elements(t)).sum::<u64>())
}

/// Refuses to begin where not even one checkpoint has room. `Some`: a warning that the later ones will not have any.
pub fn check_room(run: &Path, each: u64, keep: Keep) -> Result<Option<String>, CheckpointError> {
    let Ok(free) = free_bytes(run) else { return Ok(None) };
    if free < each {
        return Err(CheckpointError::NoRoom { path: run.into(), free, needed: each });
    }
    // One more than is kept: the oldest goes only when the new one stands.
    let needed = each * (keep.newest + keep.best + 1) as u64;
    Ok((free < needed).then(|| format!("{}: {free} bytes are free, but the checkpoints to keep need {needed}", run.display())))
}

impl Copy {
    fn of(spare: Option<Self>, parameters: &Parameters, optimizer: &Optimizer) -> Self {
        let _guard = tch::no_grad_guard();
        let (model, state) = spare.map_or_else(Default::default, |s| (s.model, s.optimizer));
        Self {
            model: copy_into(model, parameters.iter().map(|p| (p.name.clone(), &p.tensor))),
            optimizer: copy_into(state, optimizer.state().into_iter()),
        }
    }
}

/// On the CPU; into the tensors of an earlier copy where they fit.
fn copy_into<'a>(spare: Vec<(String, Tensor)>, tensors: impl Iterator<Item = (String, &'a Tensor)>) -> Vec<(String, Tensor)> {
    let mut spare = spare.into_iter();
    tensors
        .map(|(name, tensor)| match spare.next() {
            Some((_, mut memory)) if memory.size() == tensor.size() => {
                memory.copy_(tensor);
                (name, memory)
            }
            _ => (name, tensor.detach().to_device(Device::Cpu).contiguous().copy()),
        })
        .collect()
}

/// The whole way of one checkpoint to the disk.
fn write(folder: &Path, keep: Keep, copy: &Copy, state: &State, logs: &[File]) -> Saved {
    let target = folder.join(step_name(state.step));
    let (aside, old) = (target.with_extension("tmp"), target.with_extension("old"));
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| CheckpointError::Write { path, source }
    };
    make_folder(folder).map_err(failed(folder))?;
    remove_leftovers(folder);
    fs::create_dir(&aside).map_err(failed(&aside))?;
    let place = || {
        if target.exists() {
            // A folder cannot be replaced by renaming: the former one stays valid under another name until the new one is.
            if old.exists() {
                fs::remove_dir_all(&old)?;
            }
            fs::rename(&target, &old)?;
        }
        publish(&aside, &target)
    };
    let unsynced = logs.iter().find_map(|log| log.sync_data().err());
    let written = write_files(&aside, copy, state).and_then(|()| place().map_err(failed(&target)));
    if let Err(error) = written {
        let _ = fs::remove_dir_all(&aside);
        return Err(error);
    }
    remove_old(folder, keep, state);
    Ok(unsynced)
}

/// The last component only: a run's folder that was taken away is not made anew.
fn make_folder(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Ok(()) => folder.parent().map_or(Ok(()), sync_folder),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn write_files(aside: &Path, copy: &Copy, state: &State) -> Result<(), CheckpointError> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| CheckpointError::Write { path, source }
    };
    let weights = |name: &str, tensors: &[(String, Tensor)]| {
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        weights::save(&aside.join(name), tensors.iter().map(|(n, t)| (n.clone(), t)), metadata).map_err(|error| match error {
            WeightsError::Io { path, source } => CheckpointError::Write { path, source },
            other => CheckpointError::Weights(other),
        })
    };
    let json = |name: &str, text: serde_json::Result<String>| {
        let path = aside.join(name);
        text.map_err(io::Error::other).and_then(|text| fs::write(&path, text)).map_err(io(&path))
    };
    json(FILES[0], serde_json::to_string_pretty(state))?;
    weights(FILES[1], &copy.model)?;
    weights(FILES[2], &copy.optimizer)?;
    share_modes(aside).map_err(io(aside))?;
    seal(aside, &FILES, FORMAT).map_err(|(path, source)| CheckpointError::Write { path, source })
}

/// safetensors makes its files for the owner alone: they get the modes of their neighbour.
fn share_modes(folder: &Path) -> io::Result<()> {
    let modes = fs::metadata(folder.join(FILES[0]))?.permissions();
    FILES[1..].iter().try_for_each(|name| fs::set_permissions(folder.join(name), modes.clone()))
}

fn remove_leftovers(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_leftover = |path: &PathBuf| path.extension().is_some_and(|e| e == "tmp");
    entries.map(|e| e.path()).filter(is_leftover).for_each(|path| drop(fs::remove_dir_all(path)));
}

/// Keeps the newest up to the one just written, and the best; what was replaced goes as well.
fn remove_old(folder: &Path, keep: Keep, state: &State) {
    let is_replaced = |path: &Path| path.extension().is_some();
    let (replaced, standing): (Vec<_>, Vec<_>) =
        list(folder).into_iter().filter(|(step, _)| *step <= state.step).partition(|(_, path)| is_replaced(path));
    let old = &standing[..standing.len().saturating_sub(keep.newest)];
    let is_best = |step: u64| state.best.iter().take(keep.best).any(|b| b.step == step);
    let old = old.iter().filter(|(step, _)| !is_best(*step));
    replaced.iter().chain(old).for_each(|(_, path)| drop(fs::remove_dir_all(path)));
}

/// Writes weights that no run has trained here, as the checkpoint of step 0: without optimizer state. `folder`'s parent exists.
pub fn save_weights(folder: &Path, weights: Vec<(String, Tensor)>) -> Result<(), CheckpointError> {
    let copy = Copy { model: weights, optimizer: Vec::new() };
    write(folder, Keep { newest: 1, best: 0 }, &copy, &State::default(), &[]).map(|_| ())
}

/// Writes `state` beside the weights of another run's checkpoint: the first checkpoint of a fork.
pub fn adopt(folder: &Path, checkpoint: &Path, state: &State) -> Result<(), CheckpointError> {
    let target = folder.join(step_name(state.step));
    let aside = target.with_extension("tmp");
    let failed = |source| CheckpointError::Write { path: target.clone(), source };
    let copy = || {
        make_folder(folder)?;
        remove_leftovers(folder);
        fs::create_dir(&aside)?;
        fs::write(aside.join(FILES[0]), serde_json::to_string_pretty(state)?)?;
        FILES[1..].iter().try_for_each(|name| fs::copy(checkpoint.join(name), aside.join(name)).map(|_| ()))
    };
    copy().map_err(failed)?;
    seal(&aside, &FILES, FORMAT).map_err(|(path, source)| CheckpointError::Write { path, source })?;
    publish(&aside, &target).map_err(failed)
}
