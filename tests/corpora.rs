//! A corpus from files of every kind to a run, and everything that can be wrong on the way.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{prose, snapshot, Lab};
use serde_json::{json, Value};
use std::fs;
use std::io::Write;
use std::path::PathBuf;

/// The prepared folder of a cache that has one.
fn prepared(lab: &Lab, cache: &str) -> PathBuf {
    fs::read_dir(lab.path(cache)).unwrap().map(|e| e.unwrap().path()).find(|p| p.is_dir()).unwrap()
}

fn prepare(lab: &Lab, changes: &[(&str, Value)]) -> common::Ran {
    lab.config("c.json", changes);
    lab.run(&["data", "prepare", "c.json"])
}

fn refused(lab: &Lab, changes: &[(&str, Value)], parts: &[&str]) {
    let ran = prepare(lab, changes);
    let line = ran.stderr.trim_end();
    assert_eq!((ran.code, line.lines().count()), (1, 1), "{line}");
    parts.iter().for_each(|part| assert!(line.contains(part), "no \"{part}\" in: {line}"));
    if lab.path("cache").is_dir() {
        let left: Vec<_> = fs::read_dir(lab.path("cache")).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
        assert!(left.is_empty(), "something was left behind: {left:?}");
    }
}

fn gzip(text: &str) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    out.write_all(text.as_bytes()).unwrap();
    out.finish().unwrap()
}

/// The same documents in every format are the same tokens.
#[test]
fn every_format_gives_the_same_corpus() {
    let lab = Lab::new();
    let documents: Vec<String> = (0..40).map(|i| format!("{} It said \"no, {i}\".", prose(i))).collect();
    let jsonl: String = documents.iter().map(|d| json!({"id": 1, "text": d}).to_string() + "\n").collect();
    let csv = format!("id,text\r\n{}", documents.iter().map(|d| format!("1,\"{}\"\r\n", d.replace('"', "\"\""))).collect::<String>());
    let tsv = format!("text\tid\n{}", documents.iter().map(|d| format!("{d}\t1\n")).collect::<String>());
    lab.write("a/x.jsonl", &jsonl);
    lab.write("b/x.jsonl.gz", gzip(&jsonl));
    lab.write("c/x.csv.zst", zstd::encode_all(csv.as_bytes(), 3).unwrap());
    lab.write("d/x.tsv", &tsv);
    lab.write("e/x.txt", documents.join("\n\n \n"));
    lab.write("f/x.txt.gz", gzip(&format!("\u{feff}{}", documents.join("\r\n"))));
    let body = |changes: &[(&str, Value)]| {
        let ran = prepare(&lab, changes);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(ran.stdout.contains("40 documents in 1 files"), "{}", ran.stdout);
        let cache = changes.iter().find(|(key, _)| *key == "data.cache_dir").unwrap().1.as_str().unwrap().to_string();
        let folder = prepared(&lab, &cache);
        ["train-00000.bin", "validation-00000.bin"].map(|name| fs::read(folder.join(name)).unwrap()[128..].to_vec())
    };
    let of = |folder: &str, rule: &str| {
        body(&[("data.corpus", json!(folder)), ("data.document", json!(rule)), ("data.cache_dir", json!(format!("cache-{folder}")))])
    };
    let first = of("a", "record");
    assert!(first[0].len() > 1000 && first[1].len() > 100);
    for (folder, rule) in [("b", "record"), ("c", "file"), ("d", "record"), ("e", "blank_line"), ("f", "line")] {
        assert!(of(folder, rule) == first, "{folder}");
    }
}

#[test]
fn bad_files_are_named_and_skipped_only_if_that_is_wanted() {
    let lab = Lab::new();
    let good = (0..30).map(|i| json!({"text": format!("{i}. {}", prose(i))}).to_string() + "\n").collect::<String>();
    lab.write("bad/a.jsonl", format!("{good}{{\"text\": \"cut\n{{\"body\": \"x\"}}\n{good}"));
    lab.write("bad/b.txt", b"caf\xe9\n");
    let corpus = ("data.corpus", json!("bad"));
    refused(&lab, std::slice::from_ref(&corpus), &["bad/a.jsonl: line 31: not a JSON object"]);
    let ran =
        prepare(&lab, &[corpus, ("data.on_error", json!("skip")), ("data.deduplicate", json!(true)), ("data.cache_dir", json!("c2"))]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("left out: 30 duplicates, 3 invalid"), "{}", ran.stdout);
    assert!(ran.stderr.contains("a.jsonl: line 32: no column \"text\"") && ran.stderr.contains("b.txt: line 1: not UTF-8 at byte 3"));
    let found = lab.json(&format!("{}/meta.json", prepared(&lab, "c2").display()))["found"].clone();
    assert_eq!((found["documents"].as_u64(), found["invalid"].as_u64(), found["duplicates"].as_u64()), (Some(30), Some(3), Some(30)));

    let packed = gzip(&good);
    lab.write("cut/a.jsonl.gz", &packed[..packed.len() / 2]);
    refused(&lab, &[("data.corpus", json!("cut"))], &["cut/a.jsonl.gz: damaged or cut off (gzip"]);
    refused(&lab, &[("data.corpus", json!("cut")), ("data.on_error", json!("skip"))], &["damaged or cut off"]);
    lab.write("no/a.parquet", b"PAR1 this is none PAR1");
    refused(&lab, &[("data.corpus", json!("no"))], &["no/a.parquet: damaged or cut off (parquet"]);
    lab.write("columns/a.csv", "body,id\nx,1\n");
    refused(&lab, &[("data.corpus", json!("columns"))], &["columns/a.csv: line 1: no column \"text\"; the columns are body, id"]);
    lab.write("header/a.csv", "text,id\n");
    refused(&lab, &[("data.corpus", json!("header"))], &["header: no text in it"]);
    lab.write("short/a.txt", "tiny");
    refused(&lab, &[("data.corpus", json!("short")), ("data.min_document_characters", json!(9))], &["no text in it (1 too short)"]);
    refused(&lab, &[("data.corpus", json!("text/*.csv"))], &["text/*.csv: nothing matches"]);
}

/// Case 17: how many documents were found is said, so that a missing blank line is noticed.
#[test]
fn the_number_of_documents_is_said() {
    let lab = Lab::new();
    lab.write("one/a.txt", (0..50).map(|i| prose(i) + "\n").collect::<String>());
    let ran =
        prepare(&lab, &[("data.corpus", json!("one")), ("data.document", json!("blank_line")), ("data.validation_fraction", json!(0.01))]);
    assert!(ran.stdout.contains("1 document in 1 files by data.document=blank_line"), "{}{}", ran.stdout, ran.stderr);
}

#[test]
fn a_text_of_a_million_characters_is_prepared() {
    let lab = Lab::new();
    lab.write("long/a.txt", "x".repeat(1_000_000));
    lab.write("long/b.txt", "Words and words. ".repeat(60_000));
    let ran = prepare(&lab, &[("data.corpus", json!("long")), ("data.tokenizer", json!("bytes"))]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let split: Value = lab.json(&format!("{}/meta.json", prepared(&lab, "cache").display()));
    let tokens = split["train"]["tokens"].as_u64().unwrap() + split["validation"]["tokens"].as_u64().unwrap();
    assert_eq!(tokens, 1_000_000 + 17 * 60_000 + 2);
}

/// Settings, inputs and tokenizers that change are noticed; what has not changed is not made again.
#[test]
fn a_second_prepare_costs_nothing_and_a_change_is_noticed() {
    let lab = Lab::new();
    prepare(&lab, &[]);
    let count = |lab: &Lab| fs::read_dir(lab.path("cache")).unwrap().filter(|e| e.as_ref().unwrap().path().is_dir()).count();
    let before = snapshot(&lab.path("cache"));
    prepare(&lab, &[]);
    assert!(before == snapshot(&lab.path("cache")) && count(&lab) == 1);
    let changes = [("data.normalization", json!("nfc")), ("data.min_document_characters", json!(5)), ("data.sampling", json!("complete"))];
    for (i, change) in changes.iter().enumerate() {
        assert_eq!(prepare(&lab, std::slice::from_ref(change)).code, 0);
        assert_eq!(count(&lab), i + 2, "{change:?} was not noticed");
    }
    // Masks are drawn later: they change nothing that is prepared.
    prepare(&lab, &[("data.whole_word_masking", json!(true)), ("data.mask_probability", json!(0.4))]);
    assert_eq!(count(&lab), 4);
    fs::copy(prepared(&lab, "cache").join("tokenizer.json"), lab.path("t.json")).unwrap();
    prepare(&lab, &[("data.tokenizer", json!("t.json"))]);
    assert_eq!(count(&lab), 5);
}

#[test]
fn a_damaged_or_foreign_shard_is_named() {
    let lab = Lab::new();
    assert_eq!(prepare(&lab, &[]).code, 0);
    let ran = lab.ok(&["data", "verify", "c.json"]);
    assert!(ran.stdout.contains("ids in 2 shards, all as written"), "{}", ran.stdout);
    let shard = prepared(&lab, "cache").join("train-00000.bin");
    let good = fs::read(&shard).unwrap();
    let refused = |bytes: &[u8]| {
        fs::write(&shard, bytes).unwrap();
        for command in [["data", "prepare", "c.json"], ["data", "verify", "c.json"]] {
            let ran = lab.run(&command);
            assert_eq!(ran.code, 1, "{command:?}");
            assert!(ran.stderr.contains("train-00000.bin is damaged") && ran.stderr.contains("delete it"), "{}", ran.stderr);
        }
    };
    let mut changed = good.clone();
    changed[good.len() / 2] ^= 1;
    refused(&changed);
    refused(&good[..good.len() - 2]);
    // A shard of another tokenizer under a manifest that names it: the header tells.
    prepare(&lab, &[("data.vocab_size", json!(290)), ("data.cache_dir", json!("other"))]);
    lab.config("c.json", &[]);
    refused(&fs::read(prepared(&lab, "other").join("train-00000.bin")).unwrap());
}

#[test]
fn a_full_disk_leaves_nothing_and_the_next_prepare_succeeds() {
    let lab = Lab::new();
    lab.config("c.json", &[]);
    let script = format!("ulimit -f 8; trap '' XFSZ; exec {} data prepare c.json", env!("CARGO_BIN_EXE_linformer"));
    let output = std::process::Command::new("bash").args(["-c", &script]).current_dir(lab.path("")).output().unwrap();
    let ran = common::ran(output);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("File too large") && ran.stderr.trim_end().lines().count() == 1, "{}", ran.stderr);
    assert!(fs::read_dir(lab.path("cache")).unwrap().all(|e| !e.unwrap().path().is_dir()), "something was left behind");
    lab.ok(&["data", "prepare", "c.json"]);
}

#[test]
fn an_interrupted_prepare_is_begun_anew() {
    let lab = Lab::new();
    lab.config("c.json", &[]);
    lab.ok(&["data", "prepare", "c.json"]);
    let folder = prepared(&lab, "cache");
    let expected = snapshot(&folder);
    // What a kill leaves: the folder under its temporary name, with anything in it.
    let aside = folder.with_extension("tmp");
    fs::rename(&folder, &aside).unwrap();
    fs::write(aside.join("train-00000.bin"), b"half").unwrap();
    fs::write(aside.join("train-00007.bin"), b"old").unwrap();
    lab.ok(&["data", "prepare", "c.json"]);
    assert!(expected == snapshot(&folder) && !aside.exists());
}

/// Case 40.
#[test]
fn prepares_at_once_give_one_result() {
    let lab = Lab::new();
    lab.config("c.json", &[]);
    let start = || lab.command(&["data", "prepare", "c.json"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let outputs: Vec<_> = (0..3).map(|_| start()).collect::<Vec<_>>().into_iter().map(|c| c.wait_with_output().unwrap()).collect();
    assert!(outputs.iter().all(|o| o.status.success() && o.stdout == outputs[0].stdout));
}

/// As root every folder can be written, so a folder that cannot exist stands for it, and a prepared one is only read.
#[test]
fn a_cache_that_cannot_be_written_is_named_and_one_that_is_ready_is_read() {
    let lab = Lab::new();
    let ran = prepare(&lab, &[("data.cache_dir", json!("/proc/no-cache"))]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("data.cache_dir: /proc/no-cache") && ran.stderr.contains("can be written"), "{}", ran.stderr);
    prepare(&lab, &[]);
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(lab.path("cache"), fs::Permissions::from_mode(0o555)).unwrap();
    let again = prepare(&lab, &[]);
    fs::set_permissions(lab.path("cache"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(again.code, 0, "{}", again.stderr);
}

/// Every sampling and every tokenizer trains, and a resumed evaluation sees the same masks.
#[test]
fn each_sampling_and_tokenizer_trains() {
    let lab = Lab::new();
    (0..24).for_each(|i| lab.write(&format!("lines/{i}.txt"), prose(i).replace(". ", ".\n")));
    let loss = |name: &str, changes: &[(&str, Value)]| {
        let mut all = vec![("data.corpus", json!("lines")), ("run.dir", json!(name))];
        all.extend_from_slice(changes);
        lab.config("c.json", &all);
        lab.ok(&["pretrain", "c.json", "--quiet"]);
        lab.json(&format!("{name}/summary.json"))["loss"].as_f64().unwrap()
    };
    let mut losses = vec![loss("packed", &[])];
    for (i, changes) in [
        vec![("data.sampling", json!("complete"))],
        vec![("data.sampling", json!("complete_doc")), ("train.micro_batch_size", json!(4))],
        vec![("data.whole_word_masking", json!(true))],
        vec![("data.tokenizer", json!("wordpiece")), ("data.vocab_size", json!(150))],
        vec![("data.tokenizer", json!("unigram")), ("data.vocab_size", json!(80)), ("data.sampling", json!("complete"))],
    ]
    .iter()
    .enumerate()
    {
        losses.push(loss(&format!("run{i}"), changes));
    }
    assert!(losses.iter().all(|l| l.is_finite() && *l > 0.0), "{losses:?}");
    assert_eq!(loss("again", &[("data.sampling", json!("complete"))]), losses[1]);
}

/// The same lines with more padding behind them give the same evaluation: attention, compression and loss leave it out.
#[test]
fn the_loss_of_padded_sequences_does_not_depend_on_the_padding() {
    let lab = Lab::new();
    let line = |i: usize| format!("{i}: {}\n", &common::prose(i)[..10 + i * 7 % 31]);
    lab.write("short/a.txt", (0..200).map(line).collect::<String>());
    let loss = |length: u64| {
        let dir = format!("run{length}");
        let changes = [
            ("data.corpus", json!("short")),
            ("data.document", json!("line")),
            ("data.tokenizer", json!("bytes")),
            ("data.sampling", json!("complete_doc")),
            ("data.sequence_length", json!(length)),
            ("model.max_position_embeddings", json!(98)),
            ("train.learning_rate", json!(1e-30)),
            ("train.max_steps", json!(1)),
            ("train.warmup_steps", json!(0)),
            ("run.dir", json!(dir)),
        ];
        lab.config("c.json", &changes);
        lab.ok(&["pretrain", "c.json", "--quiet"]);
        let metrics = common::metrics(&lab.path(&dir));
        let of = |split: &str| metrics.iter().find(|m| m["split"] == split).unwrap()["loss"].as_f64().unwrap();
        (of("train"), of("valid"))
    };
    let (short, long) = (loss(64), loss(96));
    assert!((short.1 - long.1).abs() < 1e-5, "evaluation: {} with little padding, {} with more", short.1, long.1);
    assert!((short.0 - long.0).abs() < 0.2, "training: {} and {}", short.0, long.0);
}
