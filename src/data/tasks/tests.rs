use super::layout::Layout;
use super::prepared::{prepare, Prepared, Settings};
use super::rows::{read, Skipped, TextRow, Want};
use super::*;
use crate::config::{OnError, OnOverlap, Truncation};
use crate::data::tokenizer::Tokenizer;
use serde_json::{json, Value};

struct Files(tempfile::TempDir);

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn named(&self, task: &str) -> TaskSpec {
        TaskSpec::find(&TaskChoice::Named(task.into()), self.0.path()).unwrap()
    }

    /// A task of one's own on `train.tsv` and `dev.tsv`, with more keys laid over.
    fn own(&self, keys: Value) -> Result<TaskSpec, DataError> {
        let mut task =
            json!({"name": "mine", "train": self.path("train.tsv"), "dev": self.path("dev.tsv"), "text": "text", "label": "label"});
        keys.as_object().unwrap().iter().for_each(|(key, value)| task[key] = value.clone());
        TaskSpec::find(&TaskChoice::Own(serde_json::from_value(task).unwrap()), self.0.path())
    }

    fn prepare(&self, spec: &TaskSpec, on_error: OnError, on_overlap: OnOverlap) -> Result<Prepared, DataError> {
        let tokenizer = Tokenizer::bytes().unwrap();
        let layout = Layout { special: tokenizer.special, length: 16, truncation: Truncation::Head, segments: false };
        prepare(spec, &tokenizer, &Settings { cache_dir: &self.path("cache"), layout, on_error, on_overlap })
    }
}

fn rows(spec: &TaskSpec, files: &[PathBuf], want: Want) -> Vec<TextRow> {
    let mut rows = Vec::new();
    read(spec, files, want, OnError::Stop, &mut Skipped::default(), &mut |row| {
        rows.push(row);
        Ok(())
    })
    .unwrap();
    rows
}

fn texts(rows: &[TextRow]) -> Vec<(&str, f64)> {
    rows.iter().map(|r| (r.text.as_str(), r.label.unwrap())).collect()
}

#[test]
fn quotes_are_characters_and_blank_lines_byte_order_marks_and_crlf_are_no_text() {
    let files = Files::new(&[
        ("SST-2/train.tsv", "\u{feff}sentence\tlabel\r\n\"x\t0\r\ny \"z\t1\r\n\r\n"),
        ("SST-2/dev.tsv", "sentence\tlabel\nlast\t1"),
    ]);
    let spec = files.named("sst2");
    assert_eq!(texts(&rows(&spec, &spec.train, Want::Labelled)), [("\"x", 0.0), ("y \"z", 1.0)]);
    assert_eq!(texts(&rows(&spec, &spec.scored[0].files, Want::Labelled)), [("last", 1.0)]);
}

#[test]
fn cola_has_a_header_in_its_test_file_alone() {
    let files = Files::new(&[
        ("CoLA/train.tsv", "gj04\t1\t\tSome text.\ngj04\t0\t*\tText some.\n"),
        ("CoLA/dev.tsv", "x\t1\t\tA.\n"),
        ("CoLA/test.tsv", "index\tsentence\n7\tBill sang.\n"),
    ]);
    let spec = files.named("cola");
    assert_eq!(texts(&rows(&spec, &spec.train, Want::Labelled)), [("Some text.", 1.0), ("Text some.", 0.0)]);
    let test = rows(&spec, &spec.tests[0].files, Want::TextsOnly);
    assert_eq!((test[0].index.as_str(), test[0].text.as_str(), test[0].label), ("7", "Bill sang.", None));
}

#[test]
fn columns_are_found_by_name_whatever_stands_between_them() {
    let mrpc = "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tOne \"a\tTwo\n\n";
    let stsb = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n0\tm\tf\t2012\t1\tn\tn\tA plane\tAn air plane\t4.750\n";
    let qqp = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n5\t1\t2\tHow?\tWhy?\t0\n";
    let files = Files::new(&[("MRPC/train.tsv", mrpc), ("STS-B/train.tsv", stsb), ("QQP/train.tsv", qqp)]);
    for (task, expected) in [("mrpc", ("One \"a", "Two", 1.0)), ("stsb", ("A plane", "An air plane", 4.75)), ("qqp", ("How?", "Why?", 0.0))]
    {
        let spec = files.named(task);
        let row = rows(&spec, &spec.train, Want::Labelled).remove(0);
        assert_eq!((row.text.as_str(), row.text_pair.as_deref().unwrap(), row.label.unwrap()), expected, "{task}");
    }
}

/// Case 6.
#[test]
fn mnli_is_scored_twice_under_two_names() {
    let line = |head: &str, row: &str| format!("{head}\n{row}\n");
    let train = line("index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label", "0\tfiction\tA man.\tA person.\tentailment\tentailment");
    let dev = line("index\tsentence1\tsentence2\tlabel1\tlabel2\tgold_label", "0\tA man.\tA cat.\tneutral\tneutral\tcontradiction");
    let files = Files::new(&[("MNLI/train.tsv", &train), ("MNLI/dev_matched.tsv", &dev), ("MNLI/dev_mismatched.tsv", &dev)]);
    let spec = files.named("mnli");
    let prepared = files.prepare(&spec, OnError::Stop, OnOverlap::Warn).unwrap();
    assert_eq!(spec.scored.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["matched", "mismatched"]);
    assert_eq!((prepared.train.labels(), prepared.scored[1].labels()), (vec![0.0], vec![2.0]));
    assert_eq!(spec.tests.iter().map(|s| s.submission.as_str()).collect::<Vec<_>>(), ["MNLI-m.tsv", "MNLI-mm.tsv"]);
}

#[test]
fn hugging_faces_json_lines_hold_the_numbers_of_the_labels() {
    let rows_of = "{\"question\": \"Who?\", \"sentence\": \"It was her.\", \"label\": 1, \"idx\": 0}\n";
    let files = Files::new(&[("QNLI/train.jsonl", rows_of), ("QNLI/validation.jsonl", rows_of)]);
    let spec = files.named("qnli");
    let row = rows(&spec, &spec.train, Want::Labelled).remove(0);
    assert_eq!((row.text_pair.as_deref(), row.label, spec.labels[1].as_str()), (Some("It was her."), Some(1.0), "not_entailment"));
    assert_eq!(spec.scored[0].files, [files.path("QNLI/validation.jsonl")]);
    assert!(spec.label_of("2").is_err() && spec.label_of("-1").is_err());
}

#[test]
fn hugging_faces_parquet_is_read_in_the_order_of_its_parts() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tasks");
    let spec = TaskSpec::find(&TaskChoice::Named("mrpc".into()), &fixtures).unwrap();
    let train = rows(&spec, &spec.train, Want::Labelled);
    assert_eq!(texts(&train), [("He said \"no\" .", 1.0), ("Tab\tand\nline", 0.0), ("naïve", 1.0)]);
    assert_eq!(train[2].text_pair.as_deref(), Some("Naïve ."));
    assert_eq!(texts(&rows(&spec, &spec.scored[0].files, Want::Labelled)), [("a", 0.0), ("c", 1.0)]);
    // Test rows have the label -1 there, and are asked for without it.
    let test = rows(&spec, &spec.tests[0].files, Want::TextsOnly);
    assert_eq!((test.len(), test[1].text.as_str()), (2, "z"));
}

#[test]
fn imdb_is_read_from_its_folders_in_the_order_of_numbers() {
    let files = Files::new(&[
        ("aclImdb/train/pos/10_7.txt", "ten"),
        ("aclImdb/train/pos/9_8.txt", "nine<br /><br />end"),
        ("aclImdb/train/neg/0_1.txt", "bad"),
        ("aclImdb/train/unsup/0_0.txt", "none"),
        ("aclImdb/test/pos/0_9.txt", "Bad "),
        ("aclImdb/test/neg/0_2.txt", "poor"),
    ]);
    let spec = files.named("imdb");
    assert_eq!(texts(&rows(&spec, &spec.train, Want::Labelled)), [("bad", 0.0), ("nine\n\nend", 1.0), ("ten", 1.0)]);
    let meta = files.prepare(&spec, OnError::Stop, OnOverlap::Warn).unwrap().train.meta;
    assert_eq!((meta.overlap, meta.overlap_first.as_deref()), (1, Some("bad")));
    let kept = files.prepare(&spec, OnError::Stop, OnOverlap::Drop).unwrap().train;
    assert_eq!((kept.len(), kept.labels()), (2, vec![1.0, 1.0]));
    let message = files.prepare(&spec, OnError::Stop, OnOverlap::Stop).err().unwrap().to_string();
    assert!(message.contains("1 training rows stand in a scored split too"), "{message}");
}

#[test]
fn odd_rows_stop_or_are_counted_with_their_line_and_columns_never_shift() {
    let qqp = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t1\t2\tA?\tB?\t1\n2\t3\t\"\n3\t1\t2\tC?\tD?\t0\n4\t1\t2\tE?\tF?\t\n5\t1\t2\tG?\tH?\tx\textra\n6\t1\t2\tI?\tJ?\t2\n";
    let files = Files::new(&[("QQP/train.tsv", qqp), ("QQP/dev.tsv", qqp)]);
    let spec = files.named("qqp");
    let message = files.prepare(&spec, OnError::Stop, OnOverlap::Warn).err().unwrap().to_string();
    assert!(message.contains("dev.tsv: line 3: 3 fields, expected 6") && message.contains("data.on_error to skip"), "{message}");
    let train = files.prepare(&spec, OnError::Skip, OnOverlap::Warn).unwrap().train;
    assert_eq!((train.labels(), train.meta.skipped.rows), (vec![1.0, 0.0], 4));
    for (i, part) in
        ["line 3: 3 fields", "line 5: an empty label", "line 6: 7 fields", "line 7: label \"2\", expected one of 0, 1"].iter().enumerate()
    {
        assert!(train.meta.skipped.first[i].contains(part), "{:?}", train.meta.skipped.first);
    }
}

#[test]
fn files_without_rows_or_columns_are_refused_by_name() {
    let message = |text: &str| {
        let files = Files::new(&[("train.tsv", text), ("dev.tsv", "text\tlabel\na\t0\n")]);
        let spec = files.own(json!({"labels": ["0", "1"]})).unwrap();
        files.prepare(&spec, OnError::Stop, OnOverlap::Warn).err().unwrap().to_string()
    };
    assert!(message("").contains("train.tsv: line 1: the file is empty"), "{}", message(""));
    assert!(message("text\tlabel\n").contains("train.tsv: no rows to use"));
    assert!(message("text\tlab\nx\t1\n").contains("train.tsv: line 1: no column \"label\"; the columns are text, lab"));
    assert!(message("text\tlabel\nx\t0\nx\tmaybe\n").contains("train.tsv: line 3: label \"maybe\", expected one of 0, 1"));
}

/// Case 13: UTF-8 whatever the platform says.
#[test]
fn bad_bytes_are_an_error_with_their_line_or_counted() {
    let files = Files::new(&[("dev.tsv", "text\tlabel\na\t0\n")]);
    std::fs::write(files.path("train.tsv"), b"text\tlabel\nfine\t1\nbr\xffken\t0\n\0\t0\nlast\t0").unwrap();
    let spec = files.own(json!({"labels": ["0", "1"]})).unwrap();
    let message = files.prepare(&spec, OnError::Stop, OnOverlap::Warn).err().unwrap().to_string();
    assert!(message.contains("train.tsv: line 3: not UTF-8"), "{message}");
    let train = files.prepare(&spec, OnError::Skip, OnOverlap::Warn).unwrap().train;
    assert_eq!((train.labels(), train.meta.skipped.rows), (vec![1.0, 0.0], 2));
}

#[test]
fn a_very_long_text_is_cut_and_rows_without_text_are_counted() {
    let long = format!("text\tlabel\n{}\t1\n\t0\n", "word ".repeat(200_000));
    let files = Files::new(&[("train.tsv", &long), ("dev.tsv", "text\tlabel\na\t0\n")]);
    let spec = files.own(json!({"labels": ["0", "1"]})).unwrap();
    let train = files.prepare(&spec, OnError::Stop, OnOverlap::Warn).unwrap().train;
    assert_eq!((train.lengths(), train.meta.truncated, train.meta.without_text), (vec![16, 2], 1, 1));
    let special = Tokenizer::bytes().unwrap().special;
    assert_eq!((train.example(1).ids, train.example(0).ids[15]), (vec![special.cls, special.sep], special.sep));
}

#[test]
fn labels_are_discovered_and_sorted_and_columns_may_have_no_header() {
    let files = Files::new(&[("train.tsv", "good\tb day\npoor\ta day\nfair\tday\n"), ("dev.tsv", "good\tx\n")]);
    let spec = files.own(json!({"text": "1", "label": "0", "header": false})).unwrap();
    assert_eq!(spec.labels, ["fair", "good", "poor"]);
    let prepared = files.prepare(&spec, OnError::Stop, OnOverlap::Warn).unwrap();
    assert_eq!(prepared.train.labels(), [1.0, 2.0, 0.0]);
    let one = Files::new(&[("train.tsv", "text\tlabel\nx\tyes\n"), ("dev.tsv", "text\tlabel\nx\tyes\n")]);
    let message = one.own(json!({})).err().unwrap().to_string();
    assert!(message.contains("one label, \"yes\", expected two"), "{message}");
}

#[test]
fn a_label_that_no_config_can_hold_is_refused_where_it_stands() {
    let refused = |train: &str, text: &str| {
        let files = Files::new(&[(train, text), ("train/good/0.txt", "x")]);
        files.own(json!({"train": files.path(train.split('/').next().unwrap())})).err().unwrap().to_string()
    };
    for (train, text, parts) in [
        ("t.jsonl", "{\"label\": \"sad\"}\n{\"label\": \"joy\\n\"}\n", ["t.jsonl: line 2: label \"joy\\n\"", "without tabs"]),
        ("train/a\tb/0.txt", "y", ["/train: label \"a\\tb\"", "data.task.labels"]),
    ] {
        let message = refused(train, text);
        assert!(parts.iter().all(|part| message.contains(part)) && !message.contains('\n'), "{message}");
    }
}

#[test]
fn csv_and_json_lines_of_ones_own() {
    let files = Files::new(&[("t.csv", "text,label\n\"a, \"\"b\"\"\nc\",1.5\n"), ("d.jsonl", "{\"label\": 2, \"text\": \"x\"}\n")]);
    let spec = files.own(json!({"train": files.path("t.csv"), "dev": [files.path("d.jsonl")], "kind": "regression"})).unwrap();
    assert_eq!(texts(&rows(&spec, &spec.train, Want::Labelled)), [("a, \"b\"\nc", 1.5)]);
    assert_eq!(texts(&rows(&spec, &spec.scored[0].files, Want::Labelled)), [("x", 2.0)]);
}

#[test]
fn a_prepared_task_is_made_once_and_anew_when_a_file_changes() {
    let files = Files::new(&[("train.tsv", "text\tlabel\nx\t1\n"), ("dev.tsv", "text\tlabel\na\t0\n")]);
    let spec = files.own(json!({"labels": ["0", "1"]})).unwrap();
    let prepare = || files.prepare(&spec, OnError::Stop, OnOverlap::Warn);
    let first = prepare().unwrap();
    let changed = |p: &Prepared| std::fs::metadata(p.folder.join("train.bin")).unwrap().modified().unwrap();
    assert_eq!((prepare().unwrap().folder, changed(&prepare().unwrap())), (first.folder.clone(), changed(&first)));
    assert_eq!(first.train.meta.sha256, file_sha256(&files.path("train.tsv")));
    std::fs::write(files.path("train.tsv"), "text\tlabel\nxy\t1\nz\t0\n").unwrap();
    assert_eq!(prepare().unwrap().train.len(), 2);
    let bytes = std::fs::read(first.folder.join("train.rows")).unwrap();
    std::fs::write(first.folder.join("train.rows"), [&bytes[..8], &[0; 8]].concat()).unwrap();
    std::fs::write(files.path("train.tsv"), "text\tlabel\nx\t1\n").unwrap();
    let path = prepare().unwrap().folder.join("dev.bin");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let message = prepare().err().unwrap().to_string();
    assert!(message.contains("dev.bin is damaged") && message.contains("delete it and it will be made again"), "{message}");
}

fn file_sha256(path: &Path) -> String {
    crate::digest::file_sha256(path).unwrap().1
}

/// What GLUE's table says, by hand from its paper and Hugging Face's dataset cards.
#[test]
fn the_table_is_that_of_glue() {
    let of = |name: &str| row(name).unwrap();
    assert_eq!(of("cola").metrics[0], Metric::Matthews);
    assert_eq!(of("stsb").metric_names(), "pearson, spearman");
    assert_eq!((of("mrpc").metric_names(), of("qqp").metric_names()), ("accuracy, f1".into(), "accuracy, f1".into()));
    assert_eq!(of("mnli").labels, ["entailment", "neutral", "contradiction"]);
    assert!(["mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax"].iter().all(|t| of(t).is_pair()));
    assert!(["cola", "sst2", "imdb"].iter().all(|t| !of(t).is_pair()));
    assert!(row("periods").unwrap_err().to_string().contains("no task is named \"periods\"; known are period"));
}
