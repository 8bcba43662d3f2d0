//! The tasks known by name, one row each: GLUE, IMDB and the two that are derived from the embedded text.
//!
//! Labels stand in the official order of their ids, which is that of Hugging Face's datasets; where the files hold `0` and `1`,
//! so do the labels here.

use crate::eval::Metric;

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct TaskRow {
    pub name: &'static str,
    /// Folder below `data.task_dir`.
    pub folder: &'static str,
    /// Columns of the text, or of both texts of a pair, in the official files.
    pub texts: &'static [&'static str],
    /// ... and in Hugging Face's parquet and JSON lines, whose label is an integer in the column `label`.
    pub hub_texts: &'static [&'static str],
    pub label: &'static str,
    /// Empty: a regression.
    pub labels: &'static [&'static str],
    /// The first is the score.
    pub metrics: &'static [Metric],
    /// Empty: no training rows.
    pub train: &'static str,
    pub scored: &'static [SplitRow],
    pub tests: &'static [SplitRow],
    /// Whether the labelled official files have a header.
    pub header: bool,
    /// Whether `<br />` stands in the texts.
    pub html_breaks: bool,
    pub about: &'static str,
}

/// A split that is scored or submitted.
#[derive(Clone, Copy, Debug)]
pub struct SplitRow {
    /// Tells the splits of a task apart; empty if there is one.
    pub name: &'static str,
    /// Name of the official file without its ending.
    pub stem: &'static str,
    pub hub_stem: &'static str,
    /// The file that GLUE's server takes; empty for scored splits.
    pub submission: &'static str,
}

const fn dev(name: &'static str, stem: &'static str, hub_stem: &'static str) -> SplitRow {
    SplitRow { name, stem, hub_stem, submission: "" }
}

const fn test(submission: &'static str) -> SplitRow {
    SplitRow { name: "", stem: "test", hub_stem: "test", submission }
}

const DEV: &[SplitRow] = &[dev("", "dev", "validation")];
const ENTAILMENT: &[&str] = &["entailment", "not_entailment"];
const BINARY: &[&str] = &["0", "1"];
const ACCURACY: &[Metric] = &[Metric::Accuracy];
const TWO: &[&str] = &["sentence1", "sentence2"];
const INFERENCE: &[&str] = &["entailment", "neutral", "contradiction"];

const PLAIN: TaskRow = TaskRow {
    name: "",
    folder: "",
    texts: &["sentence"],
    hub_texts: &["sentence"],
    label: "label",
    labels: BINARY,
    metrics: ACCURACY,
    train: "train",
    scored: DEV,
    tests: &[],
    header: true,
    html_breaks: false,
    about: "",
};

/// Every task known by name. A new task is a new row.
pub const TASKS: [TaskRow; 14] = [
    TaskRow {
        name: "period",
        folder: "period",
        labels: super::super::derive::PERIODS,
        about: "embedded: when was this passage of an address to Congress spoken?",
        ..PLAIN
    },
    TaskRow {
        name: "which_novel",
        folder: "which_novel",
        texts: TWO,
        hub_texts: TWO,
        labels: super::super::derive::WHICH,
        about: "embedded: which of two passages is from a novel, the other being from an address?",
        ..PLAIN
    },
    TaskRow {
        name: "cola",
        folder: "CoLA",
        texts: &["3"],
        label: "1",
        header: false,
        metrics: &[Metric::Matthews, Metric::Accuracy],
        tests: &[test("CoLA.tsv")],
        about: "GLUE: is the sentence acceptable English?",
        ..PLAIN
    },
    TaskRow { name: "sst2", folder: "SST-2", tests: &[test("SST-2.tsv")], about: "GLUE: sentiment of a sentence", ..PLAIN },
    TaskRow {
        name: "mrpc",
        folder: "MRPC",
        texts: &["#1 String", "#2 String"],
        hub_texts: TWO,
        label: "Quality",
        metrics: &[Metric::Accuracy, Metric::F1],
        tests: &[test("MRPC.tsv")],
        about: "GLUE: do two sentences say the same?",
        ..PLAIN
    },
    TaskRow {
        name: "stsb",
        folder: "STS-B",
        texts: TWO,
        hub_texts: TWO,
        label: "score",
        labels: &[],
        metrics: &[Metric::Pearson, Metric::Spearman],
        tests: &[test("STS-B.tsv")],
        about: "GLUE: how similar are two sentences, 0 to 5?",
        ..PLAIN
    },
    TaskRow {
        name: "qqp",
        folder: "QQP",
        texts: &["question1", "question2"],
        hub_texts: &["question1", "question2"],
        label: "is_duplicate",
        metrics: &[Metric::Accuracy, Metric::F1],
        tests: &[test("QQP.tsv")],
        about: "GLUE: do two questions ask the same?",
        ..PLAIN
    },
    TaskRow {
        name: "mnli",
        folder: "MNLI",
        texts: TWO,
        hub_texts: &["premise", "hypothesis"],
        label: "gold_label",
        labels: INFERENCE,
        scored: &[dev("matched", "dev_matched", "validation_matched"), dev("mismatched", "dev_mismatched", "validation_mismatched")],
        tests: &[
            SplitRow { name: "matched", stem: "test_matched", hub_stem: "test_matched", submission: "MNLI-m.tsv" },
            SplitRow { name: "mismatched", stem: "test_mismatched", hub_stem: "test_mismatched", submission: "MNLI-mm.tsv" },
        ],
        about: "GLUE: entailment, neutral or contradiction; matched and mismatched",
        ..PLAIN
    },
    TaskRow {
        name: "qnli",
        folder: "QNLI",
        texts: &["question", "sentence"],
        hub_texts: &["question", "sentence"],
        labels: ENTAILMENT,
        tests: &[test("QNLI.tsv")],
        about: "GLUE: does the sentence answer the question?",
        ..PLAIN
    },
    TaskRow {
        name: "rte",
        folder: "RTE",
        texts: TWO,
        hub_texts: TWO,
        labels: ENTAILMENT,
        tests: &[test("RTE.tsv")],
        about: "GLUE: textual entailment",
        ..PLAIN
    },
    TaskRow {
        name: "wnli",
        folder: "WNLI",
        texts: TWO,
        hub_texts: TWO,
        tests: &[test("WNLI.tsv")],
        about: "GLUE: which noun does the pronoun mean?",
        ..PLAIN
    },
    TaskRow {
        name: "ax",
        folder: "AX",
        texts: TWO,
        hub_texts: &["premise", "hypothesis"],
        labels: INFERENCE,
        metrics: &[Metric::Matthews],
        train: "",
        scored: &[],
        tests: &[SplitRow { name: "", stem: "AX", hub_stem: "test", submission: "AX.tsv" }],
        about: "GLUE: the diagnostic sentences, for a model trained on MNLI",
        ..PLAIN
    },
    TaskRow {
        name: "imdb",
        folder: "aclImdb",
        texts: &["text"],
        hub_texts: &["text"],
        labels: &["neg", "pos"],
        scored: &[dev("", "test", "test")],
        html_breaks: true,
        about: "sentiment of film reviews; the test half is scored",
        ..PLAIN
    },
    TaskRow {
        name: "listops",
        folder: "ListOps",
        texts: &["text"],
        hub_texts: &["text"],
        labels: super::super::listops::LABELS,
        tests: &[test("ListOps.tsv")],
        about: "Long Range Arena: the value of a nested expression (linformer data listops)",
        ..PLAIN
    },
];

impl TaskRow {
    pub fn is_pair(&self) -> bool {
        self.texts.len() == 2
    }

    /// All metrics by name.
    pub fn metric_names(&self) -> String {
        self.metrics.iter().map(|m| m.name()).collect::<Vec<_>>().join(", ")
    }
}
