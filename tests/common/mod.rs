//! The real binary in a folder of its own.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

pub mod docs;

use serde_json::{json, Value};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// A temporary folder with a small corpus in it.
pub struct Lab {
    folder: tempfile::TempDir,
}

/// What a command did.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Lab {
    pub fn new() -> Self {
        let lab = Self { folder: tempfile::tempdir().unwrap() };
        for i in 0..24 {
            lab.write(&format!("text/{i:02}.txt"), prose(i));
        }
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub fn read_bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.read(name)).unwrap()
    }

    /// Writes a config: `tiny()` with `changes` (dotted keys) laid over it.
    pub fn config(&self, name: &str, changes: &[(&str, Value)]) {
        let mut config = tiny();
        for (key, value) in changes {
            set(&mut config, key, value.clone());
        }
        self.write(name, serde_json::to_string_pretty(&config).unwrap());
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_linformer"));
        command.args(args).current_dir(self.folder.path()).env("OMP_NUM_THREADS", "1");
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        ran(self.command(args).output().unwrap())
    }

    /// Runs a command that must succeed.
    pub fn ok(&self, args: &[&str]) -> Ran {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "{args:?}\n{}{}", ran.stdout, ran.stderr);
        ran
    }
}

pub fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A model that a step of takes milliseconds.
/// On the device that LINFORMER_TEST_DEVICE names.
pub fn tiny() -> Value {
    let device = std::env::var("LINFORMER_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
    json!({
        "model": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
                  "attention": {"k": 4, "sharing": "key_value"}},
        "data": {"corpus": "text", "tokenizer": "byte_bpe", "vocab_size": 300, "cache_dir": "cache", "sequence_length": 16,
                 "validation_fraction": 0.2, "max_validation_sequences": 16},
        "train": {"max_steps": 6, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 2, "log_every": 2, "eval_every": 3, "checkpoint_every": 3},
        "run": {"dir": "run", "device": device}
    })
}

pub fn set(config: &mut Value, key: &str, value: Value) {
    let slot = key.split('.').fold(config, |at, part| &mut at[part]);
    *slot = value;
}

/// Sentences that differ from document to document.
pub fn prose(i: usize) -> String {
    let subjects = ["The ship", "A sailor", "The captain", "Her sister", "The committee", "An old man"];
    let verbs = ["saw", "praised", "forgot", "carried", "questioned", "remembered"];
    let objects = ["the harbour", "a letter", "the new law", "his garden", "seven stones", "the winter"];
    let sentence = |j: usize| format!("{} {} {}.", subjects[(i + j) % 6], verbs[(i * 3 + j / 2) % 6], objects[(i * 5 + j / 3) % 6]);
    (0..40).map(sentence).collect::<Vec<_>>().join(" ")
}

/// Every file below a folder with its bytes, to see whether anything changed.
pub fn snapshot(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path)
            } else {
                files.push((path.clone(), std::fs::read(&path).unwrap()))
            }
        }
    }
    files.sort();
    files
}

/// SHA-256 of the weights and the optimizer state of a run's checkpoint.
pub fn weights_sha256(run: &Path, step: u64) -> String {
    let folder = run.join(format!("checkpoints/step-{step:08}"));
    let both = ["model.safetensors", "optimizer.safetensors"].map(|name| {
        let path = folder.join(name);
        linformer::digest::file_sha256(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).1
    });
    both.concat()
}

/// What a clock and the memory say in metrics.jsonl.
pub const CLOCKS: [&str; 9] = [
    "time",
    "tokens_per_second",
    "mfu",
    "data_wait",
    "checkpoint_stall",
    "peak_memory",
    "communication",
    "communication_exposed",
    "communication_overlap",
];

/// The lines of metrics.jsonl without what a clock says.
pub fn metrics(run: &Path) -> Vec<Value> {
    let path = run.join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let strip = |line: &str| {
        let mut value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{}: {e}: {line}", path.display()));
        CLOCKS.iter().for_each(|key| drop(value.as_object_mut().unwrap().remove(*key)));
        value
    };
    text.lines().map(strip).collect()
}

/// The events of a folder's one event file.
pub fn events(folder: &Path) -> Vec<tensorboard_proto::event::Event> {
    let files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let bytes = std::fs::read(&files[0]).unwrap();
    let (mut at, mut events) = (0, Vec::new());
    // A record: length, its checksum, the event, its checksum.
    while at < bytes.len() {
        let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        let mut event = tensorboard_proto::event::Event::new();
        protobuf::Message::merge_from_bytes(&mut event, &bytes[at + 12..at + 12 + length]).unwrap();
        events.push(event);
        at += length + 16;
    }
    events
}

/// What a run's event file shows in its order, without what a clock says: scalars with their value, histograms with their sum.
pub fn series(run: &Path) -> Vec<(String, i64, f32)> {
    let mut shown = Vec::new();
    for event in events(&run.join("tensorboard")) {
        for value in event.get_summary().get_value() {
            if !CLOCKS.iter().any(|clock| value.get_tag().ends_with(clock)) {
                let number = value.get_simple_value() + value.get_histo().get_sum() as f32;
                shown.push((value.get_tag().to_string(), event.get_step(), number));
            }
        }
    }
    shown
}

/// Rows of a task file: a sentence and its label.
pub fn task_rows(count: usize) -> String {
    let row = |i: usize| format!("{}\t{}\n", prose(i).split('.').next().unwrap(), i % 2);
    "text\tlabel\n".to_string() + &(0..count).map(row).collect::<String>()
}

/// Preloads `tests/crash_points/shim.c`: the `at`-th change below `folder` ends the process or fails, as `mode` says.
pub fn crash_variables(folder: &Path, mode: &str, at: usize) -> Vec<(&'static str, String)> {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    let shim = SHIM.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash_points/shim.c");
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("crash-shim-{}.so", std::process::id()));
        let status = Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).args([&library, &source]).arg("-ldl").status().unwrap();
        assert!(status.success());
        library
    });
    let root = folder.canonicalize().unwrap();
    vec![
        ("LD_PRELOAD", shim.display().to_string()),
        ("CRASH_ROOT", root.display().to_string()),
        ("CRASH_MODE", mode.into()),
        ("CRASH_AT", at.to_string()),
        ("CRASH_COUNT", root.with_extension("count").display().to_string()),
    ]
}
