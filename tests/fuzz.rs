//! Every file that the program reads, broken in many ways: no panic, no endless loop, no memory out of proportion.
//!
//! Mutations of real files, the same for the same FUZZ_SEED; FUZZ_COUNT inputs for each reader. An input that ends the
//! process is left in the file named at the end; one that was found and mended stands in `tests/fixtures/fuzz/READER/`, and
//! is among the seeds.
#![allow(clippy::unwrap_used, clippy::expect_used)]
// A global allocator is the only way to see what a reader asks for.
#![allow(unsafe_code)]

mod common;

use common::Lab;
use linformer::config::load;
use linformer::config::sweep::Sweep;
use linformer::config::{Data, DocumentRule, OnError, OwnTask, TaskChoice, Truncation};
use linformer::data::corpus::CorpusFile;
use linformer::data::documents::documents;
use linformer::data::tasks::layout::Layout as TaskLayout;
use linformer::data::tasks::prepared::sequences;
use linformer::data::tasks::rows::{read, Skipped, Want};
use linformer::data::tasks::TaskSpec;
use linformer::data::token_file::{Origin, TokenFile};
use linformer::data::tokenizer::{Kind, Tokenizer};
use linformer::exchange::import::{import, From, Request};
use linformer::model::weights::WeightsFile;
use linformer::random::{Draws, Purpose, Stream};
use linformer::train::checkpoint::Checkpoint;
use linformer::train::health::Incident;
use serde_json::json;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Bytes that one reading may hold at once, beside what its input's size explains.
const ALLOWANCE: isize = 64 << 20;
const SECONDS: f64 = 5.0;

thread_local! {
    /// Bytes held since the guard was set, and how many may be.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static LIMIT: Cell<isize> = const { Cell::new(isize::MAX) };
}

struct Guard;

// SAFETY: the system's allocator does the work; here it is only counted.
unsafe impl GlobalAlloc for Guard {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn count(bytes: isize) {
    let _ = HELD.try_with(|held| {
        held.set(held.get().saturating_add(bytes));
        if held.get() > LIMIT.try_with(Cell::get).unwrap_or(isize::MAX) {
            LIMIT.set(isize::MAX);
            eprintln!("a reader asked for {bytes} bytes and holds {} in all: see the file \"input\" named above", held.get());
            std::process::abort();
        }
    });
}

#[global_allocator]
static GUARD: Guard = Guard;

/// A reader of files: its name, what it reads, good inputs.
struct Reader {
    name: &'static str,
    seeds: Vec<Vec<u8>>,
    read: Box<dyn Fn(&Path)>,
}

fn mutate(seeds: &[Vec<u8>], random: &mut Draws) -> Vec<u8> {
    let below = |random: &mut Draws, n: usize| random.below(n.max(1) as u64) as usize;
    let mut bytes = seeds[below(random, seeds.len())].clone();
    for _ in 0..1 + below(random, 4) {
        let at = below(random, bytes.len());
        match random.below(11) {
            _ if bytes.is_empty() => bytes.push(random.below(256) as u8),
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b'[', b'\t', b'\n', b'\r', b'-'][below(random, 12)],
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..(at + 1 + below(random, 20)).min(bytes.len()))),
            4 => {
                let piece = bytes[at..(at + 1 + below(random, 60)).min(bytes.len())].to_vec();
                let to = below(random, bytes.len());
                bytes.splice(to..to, piece);
            }
            5 => {
                let other = &seeds[below(random, seeds.len())];
                let from = below(random, other.len());
                bytes.splice(at.., other[from..].iter().copied());
            }
            6 => (0..8.min(bytes.len() - at)).for_each(|i| bytes[at + i] = [0xff, 0x00, 0x7f][at % 3]),
            7 => (0..1 + below(random, 4)).for_each(|i| bytes.insert((at + i).min(bytes.len()), random.below(256) as u8)),
            // A number in a text becomes another one.
            8 | 9 => {
                let digits = |b: &u8| b.is_ascii_digit();
                let Some(first) = bytes[at..].iter().position(digits).map(|i| at + i) else { continue };
                let end = bytes[first..].iter().position(|b| !digits(b)).map_or(bytes.len(), |i| first + i);
                let numbers = [
                    "0",
                    "-1",
                    "1e308",
                    "18446744073709551615",
                    "9223372036854775807",
                    "4294967296",
                    "1e-320",
                    "0.5",
                    "1152921504606846976",
                    "[]",
                    "null",
                    "NaN",
                ];
                bytes.splice(first..end, numbers[below(random, numbers.len())].bytes());
            }
            // A quoted word becomes another one of the same file.
            _ => {
                let quotes: Vec<usize> = (0..bytes.len()).filter(|i| bytes[*i] == b'"').collect();
                if quotes.len() >= 4 {
                    let (a, b) = (below(random, quotes.len() - 1), below(random, quotes.len() - 1));
                    let word = bytes[quotes[a]..quotes[a + 1]].to_vec();
                    bytes.splice(quotes[b]..quotes[b + 1], word);
                }
            }
        }
    }
    bytes
}

/// Gives how many inputs were read.
fn fuzz(reader: &Reader, folder: &Path, seed: u64, inputs: u64) -> u64 {
    let input = folder.join("input");
    let mut seeds = reader.seeds.clone();
    let known = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/fuzz").join(reader.name);
    seeds.extend(fs::read_dir(known).into_iter().flatten().map(|e| fs::read(e.unwrap().path()).unwrap()));
    println!("{}: {inputs} inputs from {} seeds, each through {}", reader.name, seeds.len(), input.display());
    let whole = seeds.len() as u64;
    for number in 0..inputs {
        let bytes = match seeds.get(number as usize) {
            Some(seed) if number < whole => seed.clone(),
            _ => mutate(&seeds, &mut Stream::new(seed, Purpose::Order, number).draws()),
        };
        fs::write(&input, &bytes).unwrap();
        let started = Instant::now();
        HELD.set(0);
        // Four bytes of zstd may become 128 KiB, and each column reads a page of its own.
        let allowance = if reader.name == "parquet" { 1 << 30 } else { ALLOWANCE };
        LIMIT.set(allowance + 64 * bytes.len() as isize);
        let result = catch_unwind(AssertUnwindSafe(|| (reader.read)(&input)));
        LIMIT.set(isize::MAX);
        let seconds = started.elapsed().as_secs_f64();
        // A column of one repeated value may rightly hold 2^31 rows in a few bytes: such a file takes its time.
        let limit = if reader.name == "parquet" { 120.0 } else { SECONDS };
        assert!(
            result.is_ok() && seconds < limit,
            "{}: input {number} of seed {seed}, in {}: {seconds:.1} s",
            reader.name,
            input.display()
        );
    }
    inputs
}

fn labels(task: &str) -> OwnTask {
    let labels = if task == "regression" { json!([]) } else { json!(["0", "1"]) };
    serde_json::from_value(json!({"name": "mine", "train": "input", "dev": "input", "text": "text", "label": "label", "labels": labels}))
        .unwrap()
}

fn readers(lab: &Lab) -> Vec<Reader> {
    lab.config("c.json", &[("data.tokenizer", json!("bytes")), ("train.max_steps", json!(3))]);
    lab.ok(&["pretrain", "c.json", "--quiet"]);
    let file = |name: &str| fs::read(lab.path(name)).unwrap();
    let checkpoint = lab.path("run/checkpoints/step-00000003");
    let prepared = fs::read_dir(lab.path("cache")).unwrap().map(|e| e.unwrap().path()).find(|p| p.is_dir()).unwrap();
    let sweep = json!({"base": "c.json", "dir": "runs/k", "variants": [{"name": "full", "set": {"model.attention.kind": "full"}}], "grid": {"train.seed": [0, 1]}});
    let incident = Incident { step: 3, what: "loss".into(), place: "x".into(), batch: json!({"ids": [1, 2]}) };
    let tsv = common::task_rows(6).into_bytes();
    let header = fs::read(prepared.join("train-00000.bin")).unwrap();
    let origin =
        Origin { vocab_size: 300, tokenizer_sha256: header[48..80].try_into().unwrap(), settings: header[112..120].try_into().unwrap() };
    let small_tokenizer = Tokenizer::train(Kind::ByteBpe, [Ok(common::prose(1))].into_iter(), 270).unwrap().to_json().unwrap();
    let tokenizer = Tokenizer::bytes().unwrap();
    // A checkpoint beside each input: one of its files is the input.
    let swap = |name: &'static str| {
        let folder = checkpoint.clone();
        move |input: &Path| {
            let aside = input.with_file_name("checkpoint");
            if !aside.exists() {
                fs::create_dir(&aside).unwrap();
                fs::read_dir(&folder)
                    .unwrap()
                    .map(|e| e.unwrap().path())
                    .for_each(|p| assert!(fs::copy(&p, aside.join(p.file_name().unwrap())).unwrap() > 0));
            }
            fs::copy(input, aside.join(name)).unwrap();
            let _ = Checkpoint::open(&aside);
            fs::copy(folder.join(name), aside.join(name)).unwrap();
        }
    };
    let experiments = |folder: &str| -> Vec<Vec<u8>> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments").join(folder);
        fs::read_dir(path)
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.extension().is_some_and(|e| e == "json"))
            .map(|p| fs::read(p).unwrap())
            .collect()
    };
    let configs = [vec![file("c.json"), file("run/config.json")], experiments("demo")].concat();
    // A reader that knows its file by the ending.
    fn tables(ending: &'static str, seeds: Vec<Vec<u8>>) -> Reader {
        let read = move |path: &Path| {
            let named = path.with_extension(ending);
            fs::rename(path, &named).unwrap();
            let data = Data { on_error: OnError::Skip, ..Data::default() };
            documents(&[CorpusFile { id: "input".into(), path: named.clone() }], &data).for_each(drop);
            fs::rename(named, path).unwrap();
        };
        Reader { name: ending, seeds, read: Box::new(read) }
    }
    let small_parquet = |codec: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/readers/{codec}.parquet"));
        fs::read(path).unwrap()
    };
    let gzip = |text: &str| {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut out, text.as_bytes()).unwrap();
        out.finish().unwrap()
    };
    fn reader(name: &'static str, seeds: Vec<Vec<u8>>, read: impl Fn(&Path) + 'static) -> Reader {
        Reader { name, seeds, read: Box::new(read) }
    }
    // A checkpoint from elsewhere: one of its files is the input.
    let foreign = |name: &'static str, fixture: &str, file: &'static str| {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/exchange").join(fixture);
        let seeds = vec![fs::read(from.join(file)).unwrap()];
        reader(name, seeds, move |input| {
            let aside = input.with_file_name("checkpoint");
            if !aside.exists() {
                fs::create_dir(&aside).unwrap();
                common::snapshot(&from).into_iter().for_each(|(p, bytes)| fs::write(aside.join(p.file_name().unwrap()), bytes).unwrap());
            }
            fs::copy(input, aside.join(file)).unwrap();
            let request = Request { source: aside, from: From::HuggingFace, tokenizer: None, num_attention_heads: None, linformer: None };
            let _ = import(&request, &mut |_| {});
        })
    };
    vec![
        foreign("hf_config", "roberta_mlm", "config.json"),
        foreign("hf_index", "roberta_classifier", "model.safetensors.index.json"),
        foreign("hf_weights", "bert_encoder", "model.safetensors"),
        reader("config", configs, |path| drop(load::load(path, &["train.seed=1".into()]))),
        reader("sweep", [vec![sweep.to_string().into_bytes()], experiments("demo")].concat(), |path| drop(Sweep::load(path, &[]))),
        reader("tokenizer", vec![small_tokenizer.into_bytes()], |path| {
            if let Ok(tokenizer) = Tokenizer::load(path) {
                let _ = tokenizer.encode_all(vec!["The ship saw 3 harbours.".into()]);
            }
        }),
        reader("safetensors", vec![file("run/checkpoints/step-00000003/model.safetensors")], |path| {
            if let Ok(weights) = WeightsFile::open(path) {
                let _ = weights.tensor("roberta.embeddings.LayerNorm.weight", Some(&[16]));
            }
        }),
        reader("tokens", ["train-00000.bin", "validation-00000.bin"].map(|n| fs::read(prepared.join(n)).unwrap()).to_vec(), move |path| {
            if let Ok(tokens) = TokenFile::open(path, &origin, 0) {
                let _ = (0..tokens.len()).map(|i| tokens.id(i)).max();
            }
        }),
        reader("manifest", vec![file("run/checkpoints/step-00000003/manifest.json")], swap("manifest.json")),
        reader("state", vec![file("run/checkpoints/step-00000003/state.json")], |path| {
            for format in 0..3 {
                let _ = linformer::train::state::State::read(&String::from_utf8_lossy(&fs::read(path).unwrap()), format);
            }
        }),
        reader("incident", vec![serde_json::to_vec(&incident).unwrap()], |path| {
            drop(serde_json::from_slice::<Incident>(&fs::read(path).unwrap()))
        }),
        reader("tsv", vec![tsv, b"text\tlabel\r\n\"a\t1\r\n".to_vec()], move |path| {
            for kind in ["classes", "regression"] {
                if let Ok(spec) = TaskSpec::find(&TaskChoice::Own(Box::new(labels(kind))), Path::new("")) {
                    let mut rows = Vec::new();
                    for on_error in [OnError::Stop, OnError::Skip] {
                        let _ = read(&spec, &[path.to_path_buf()], Want::Labelled, on_error, &mut Skipped::default(), &mut |row| {
                            rows.push(row);
                            Ok(())
                        });
                    }
                    let layout = TaskLayout { special: tokenizer.special, length: 16, truncation: Truncation::HeadTail, segments: false };
                    let _ = sequences(&rows, &tokenizer, layout);
                }
            }
        }),
        reader("text", vec![common::prose(2).into_bytes(), "\u{feff}a\r\n\r\nb\0c é\n".into()], |path| {
            for rule in [DocumentRule::File, DocumentRule::Line, DocumentRule::BlankLine] {
                let data = Data { document: rule, ..Data::default() };
                documents(&[CorpusFile { id: "input".into(), path: path.into() }], &data).for_each(drop);
            }
        }),
        tables("csv", vec![b"text,label\n\"a, b\",1\r\n\"say \"\"hi\"\"\",0\n".to_vec(), b"label,text\n1,plain\n".to_vec()]),
        tables("jsonl", vec![b"{\"text\": \"a\", \"label\": 1}\n{\"label\": \"0\", \"text\": \"b\\u00e9\"}\n".to_vec()]),
        tables(
            "parquet",
            vec![small_parquet("snappy"), small_parquet("zstd"), small_parquet("gzip"), small_parquet("none"), small_parquet("delta")],
        ),
        tables("txt.gz", vec![gzip(&common::prose(3))]),
        reader("metrics", vec![file("run/metrics.jsonl")], |path| drop(linformer::log::jsonl::JsonLines::open(path, 2))),
    ]
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn all(inputs: u64) {
    // Panics that the program catches are not printed; one that it does not catch is a finding.
    linformer::native::panics::install_hook();
    let lab = Lab::new();
    // In memory where there is such a file system: every input is written once.
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() };
    let only = std::env::var("FUZZ_ONLY").ok();
    let seed = number("FUZZ_SEED", 1);
    let total: u64 = readers(&lab)
        .iter()
        .filter(|r| only.as_deref().is_none_or(|o| o == r.name))
        .map(|reader| {
            let own: PathBuf = folder.path().join(reader.name);
            fs::create_dir(&own).unwrap();
            std::env::set_current_dir(lab.path("")).unwrap();
            fuzz(reader, &own, seed, inputs)
        })
        .sum();
    println!("{total} inputs, nothing found");
    std::env::set_current_dir("/").unwrap();
}

#[test]
fn a_few_broken_files_for_every_reader() {
    all(1500);
}

#[test]
#[ignore = "slow: make fuzz"]
fn many_broken_files_for_every_reader() {
    all(number("FUZZ_COUNT", 1_000_000));
}
