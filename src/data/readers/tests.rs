#![allow(clippy::unwrap_used)]

use super::lines::Lines;
use super::*;
use std::io::Write;
use std::path::PathBuf;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn texts(path: &Path, column: &str) -> Vec<(u64, String)> {
    let rows = open(path, &Options::columns(&[column])).unwrap();
    rows.map(|row| row.map(|r| (r.line, r.require(column).unwrap().to_string())).unwrap()).collect()
}

fn messages(path: &Path, options: &Options) -> Vec<String> {
    match open(path, options) {
        Ok(rows) => rows.filter_map(|row| row.err().map(|e| e.to_string())).collect(),
        Err(error) => vec![error.to_string()],
    }
}

fn packed(bytes: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::None => bytes.to_vec(),
        Compression::Gzip => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(bytes).unwrap();
            out.finish().unwrap()
        }
        Compression::Zstd => zstd::encode_all(bytes, 1).unwrap(),
        Compression::Bzip2 => {
            let mut out = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            out.write_all(bytes).unwrap();
            out.finish().unwrap()
        }
        // Written by xz 5.4: the crate's encoder is not built.
        Compression::Xz => include_bytes!("../../../tests/fixtures/readers/lines.txt.xz").to_vec(),
    }
}

const ENDINGS_OF: [(&str, Compression); 5] = [
    ("", Compression::None),
    (".gz", Compression::Gzip),
    (".zst", Compression::Zstd),
    (".bz2", Compression::Bzip2),
    (".xz", Compression::Xz),
];

/// What `tests/fixtures/readers/make.py` wrote.
fn numbered() -> String {
    (0..2000).map(|i| format!("{i}\tline {i} with \"quotes\" and, commas\n")).collect()
}

#[test]
fn each_compression_gives_the_same_lines_and_a_cut_one_is_named() {
    let folder = Folder::new();
    let expected = numbered();
    for (ending, compression) in ENDINGS_OF {
        let bytes = packed(expected.as_bytes(), compression);
        let path = folder.file(&format!("a.txt{ending}"), &bytes);
        let lines: Vec<String> = Lines::open(&path, 1 << 20).unwrap().map(|l| l.unwrap().text + "\n").collect();
        assert_eq!(lines.concat(), expected, "{ending}");
        if compression == Compression::None {
            continue;
        }
        for cut in [bytes.len() - 9, bytes.len() / 2, 5] {
            let path = folder.file(&format!("cut.txt{ending}"), &bytes[..cut]);
            let error = match Lines::open(&path, 1 << 20) {
                Ok(lines) => lines.filter_map(Result::err).last(),
                Err(error) => Some(error),
            };
            let text = error.map(|e| e.to_string()).unwrap_or_default();
            assert!(text.contains(&format!("cut.txt{ending}: damaged or cut off")), "{ending} cut at {cut}: {text}");
        }
        let mut several = bytes.clone();
        several.extend(&bytes);
        let path = folder.file(&format!("two.txt{ending}"), several);
        assert_eq!(Lines::open(&path, 1 << 20).unwrap().filter(|l| l.is_ok()).count(), 4000, "two members in one {ending}");
    }
}

#[test]
fn lines_end_with_lf_or_crlf_or_the_file_and_a_mark_is_dropped() {
    let folder = Folder::new();
    let path = folder.file("a.txt", b"\xef\xbb\xbfone\r\ntwo\n\nthree \r x");
    let lines: Vec<_> = Lines::open(&path, 100).unwrap().map(|l| l.map(|l| (l.number, l.text, l.ended)).unwrap()).collect();
    let expected = [(1, "one", true), (2, "two", true), (3, "", true), (4, "three \r x", false)];
    assert_eq!(lines, expected.map(|(n, t, e)| (n, t.to_string(), e)));
    assert_eq!(Lines::open(&folder.file("empty.txt", b""), 100).unwrap().count(), 0);
    assert_eq!(Lines::open(&folder.file("mark.txt", b"\xef\xbb\xbf"), 100).unwrap().count(), 0);
}

#[test]
fn a_bad_line_is_one_error_and_the_rest_is_read() {
    let folder = Folder::new();
    let path = folder.file("a.txt", b"\xef\xbb\xbffine\ncaf\xe9\nnul\0\nfine\n");
    let lines: Vec<_> = Lines::open(&path, 100).unwrap().collect();
    assert_eq!(lines.len(), 4);
    let message = |i: usize| lines[i].as_ref().unwrap_err().to_string();
    assert!(message(1).contains("a.txt: line 2: not UTF-8 at byte 11"), "{}", message(1));
    assert!(message(2).contains("a.txt: line 3: a NUL byte at byte 16"), "{}", message(2));
    assert!(lines.iter().filter_map(|l| l.as_ref().err()).all(|e| e.is_record()));
    let long = folder.file("long.txt", "x".repeat(300));
    let error = Lines::open(&long, 100).unwrap().map(Result::unwrap_err).collect::<Vec<_>>();
    assert_eq!(error.len(), 1);
}

#[test]
fn tsv_has_no_quoting_and_names_odd_rows() {
    let folder = Folder::new();
    let path = folder.file("a.tsv", "id\ttext\r\n1\t\"open quote\r\n\r\n2\tsays \"no\"\n3\n4\ta\tb\n5\tlast, no end");
    let rows: Vec<_> = open(&path, &Options::columns(&["text"])).unwrap().collect();
    let good: Vec<_> = rows.iter().flatten().map(|r| (r.line, r.get("text").unwrap())).collect();
    assert_eq!(good, [(2, "\"open quote"), (4, "says \"no\""), (7, "last, no end")]);
    let bad = messages(&path, &Options::default());
    assert!(bad[0].contains("a.tsv: line 5: 1 fields, expected 2 (id, text)"), "{bad:?}");
    assert!(bad[1].contains("a.tsv: line 6: 3 fields, expected 2"), "{bad:?}");
    let headless = Options { header: false, ..Options::columns(&["3"]) };
    let cola = folder.file("cola.tsv", "gj04\t1\t\tOne sentence.\nb\t0\t*\tTwo.\n");
    let texts: Vec<_> = open(&cola, &headless).unwrap().map(|r| r.unwrap().require("3").unwrap().to_string()).collect();
    assert_eq!(texts, ["One sentence.", "Two."]);
}

#[test]
fn csv_has_quotes_line_breaks_in_fields_and_lines_that_count_them() {
    let folder = Folder::new();
    let path = folder.file("a.csv", b"\xef\xbb\xbftext,n\n\"one, \"\"two\"\"\nthree\",1\r\n\nplain,2\nx\ncaf\xe9,3\nlast,4");
    let rows: Vec<_> = open(&path, &Options::columns(&["text"])).unwrap().collect();
    let good: Vec<_> = rows.iter().flatten().map(|r| (r.line, r.get("text").unwrap())).collect();
    assert_eq!(good, [(2, "one, \"two\"\nthree"), (5, "plain"), (8, "last")]);
    let bad = messages(&path, &Options::default());
    assert!(bad[0].contains("line 6: 1 fields, expected 2"), "{bad:?}");
    assert!(bad[1].contains("line 7: field 1 is not UTF-8 at its byte 3"), "{bad:?}");
}

#[test]
fn a_quote_that_is_never_closed_does_not_take_in_the_file() {
    let folder = Folder::new();
    let path = folder.file("a.csv", format!("text\nfine\n\"open\n{}", "some words\n".repeat(20_000)));
    let options = Options { max_record: 50_000, ..Options::default() };
    let bad = messages(&path, &options);
    assert_eq!(bad.len(), 1, "{bad:?}");
    assert!(bad[0].contains("a.csv: line 3: longer than") && bad[0].contains("never closed"), "{bad:?}");
}

#[test]
fn json_lines_carry_every_kind_of_value() {
    let folder = Folder::new();
    let path = folder.file(
        "a.jsonl",
        "{\"text\": \"one\\ntwo\", \"label\": 1}\r\n\n{\"label\": 0.5, \"text\": null}\n[1]\n{\"text\": \"x\"\n{\"text\": true, \"meta\": {\"a\": [1]}}",
    );
    let rows: Vec<_> = open(&path, &Options::default()).unwrap().collect();
    let first = rows[0].as_ref().unwrap();
    assert_eq!((first.line, first.get("text"), first.get("label")), (1, Some("one\ntwo"), Some("1")));
    let second = rows[1].as_ref().unwrap();
    assert_eq!((second.line, second.get("label")), (3, Some("0.5")));
    assert!(second.require("text").unwrap_err().to_string().contains("line 3: column \"text\" is null"));
    assert!(second.require("body").unwrap_err().to_string().contains("no column \"body\"; the columns are label, text"));
    let bad = messages(&path, &Options::default());
    assert!(bad[0].contains("a.jsonl: line 4: not a JSON object"), "{bad:?}");
    assert!(bad[1].contains("a.jsonl: line 5: not a JSON object"), "{bad:?}");
    assert_eq!(rows[4].as_ref().unwrap().get("meta"), Some("{\"a\":[1]}"));
}

#[test]
fn missing_columns_and_empty_files_are_named_at_open() {
    let folder = Folder::new();
    let wants = Options::columns(&["body"]);
    for name in ["a.csv", "a.tsv"] {
        let path = folder.file(name, "text,n\n");
        assert!(messages(&path, &wants)[0].contains("line 1: no column \"body\"; the columns are text"), "{name}");
        assert!(messages(&folder.file(name, ""), &wants)[0].contains("the file is empty"), "{name}");
        assert_eq!(messages(&folder.file(name, "body\n"), &wants), Vec::<String>::new(), "a header alone is no rows");
    }
    assert!(messages(&folder.file("a.md", "x"), &wants)[0].contains("a.md: line 1: not a table"));
}

/// Written by pyarrow, see `tests/fixtures/readers/make.py`.
#[test]
fn parquet_of_every_compression_gives_the_values_that_pyarrow_wrote() {
    let folder = Folder::new();
    let files: [(&str, &[u8]); 5] = [
        ("snappy", include_bytes!("../../../tests/fixtures/readers/snappy.parquet")),
        ("zstd", include_bytes!("../../../tests/fixtures/readers/zstd.parquet")),
        ("gzip", include_bytes!("../../../tests/fixtures/readers/gzip.parquet")),
        ("none", include_bytes!("../../../tests/fixtures/readers/none.parquet")),
        ("delta", include_bytes!("../../../tests/fixtures/readers/delta.parquet")),
    ];
    for (name, bytes) in files {
        let path = folder.file(&format!("{name}.parquet"), bytes);
        let rows: Vec<Row> = open(&path, &Options::default()).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(rows.len(), 1000, "{name}");
        assert_eq!(&rows[0].columns[..], ["idx", "text", "label", "score", "flag", "meta.url"]);
        for (i, row) in rows.iter().enumerate() {
            let text = (i % 7 != 3).then(|| format!("text {i} naïve \"quoted\"\nsecond line"));
            assert_eq!(row.get("text").map(str::to_string), text, "{name} {i}");
            assert_eq!(row.get("label"), Some((i as i64 % 3 - 1).to_string().as_str()));
            assert_eq!(row.get("score"), Some((i as f32 / 4.0).to_string().as_str()));
            assert_eq!((row.get("flag"), row.line), (Some(if i % 2 == 0 { "true" } else { "false" }), i as u64 + 1));
        }
        assert_eq!(texts_or_null(&path), 1000 - 143);
        let bad = messages(&path, &Options::columns(&["tags.list.element"]));
        assert!(bad[0].contains("is a list"), "{bad:?}");
        assert!(messages(&path, &Options::columns(&["body"]))[0].contains("no column \"body\"; the columns are idx, text"));
        for cut in [bytes.len() - 1, bytes.len() / 2, 3, 0] {
            let path = folder.file("cut.parquet", &bytes[..cut]);
            assert!(messages(&path, &Options::default())[0].contains("cut.parquet: damaged or cut off"), "{name} {cut}");
        }
    }
}

fn texts_or_null(path: &Path) -> usize {
    open(path, &Options::columns(&["text"])).unwrap().filter(|r| r.as_ref().unwrap().get("text").is_some()).count()
}

#[test]
fn compressed_tables_are_tables() {
    let folder = Folder::new();
    let path = folder.file("a.jsonl.gz", packed(b"{\"text\": \"one\"}\n", Compression::Gzip));
    assert_eq!(texts(&path, "text"), [(1, "one".to_string())]);
    let path = folder.file("a.csv.zst", packed(b"text\n\"a,b\"\n", Compression::Zstd));
    assert_eq!(texts(&path, "text"), [(2, "a,b".to_string())]);
}

#[test]
fn a_quote_that_is_never_closed_is_named_where_it_opens() {
    let folder = Folder::new();
    let cases = [
        ("x,text\n1,\"unclosed\n2,foo\n3,bar\n", 2),
        ("text\n\"a \"\"b\"\"\"\n\"two\nlines\"\nplain \"quote\n\"open", 6),
        ("x,text\n1,a\n2,\"b", 3),
        ("x,text\r1,\"b", 1),
    ];
    for (i, (text, line)) in cases.into_iter().enumerate() {
        let path = folder.file(&format!("{i}.csv"), text);
        let found = messages(&path, &Options::columns(&["text"]));
        assert!(found.len() == 1 && found[0].contains(&format!("line {line}: a quote opens here and is never closed")), "{found:?}");
    }
}

#[test]
fn blank_lines_of_one_column_are_rows() {
    let folder = Folder::new();
    let expected = [(2, "b"), (3, ""), (4, "c"), (5, ""), (6, "")].map(|(line, text)| (line, text.to_string()));
    for name in ["one.tsv", "one.csv"] {
        assert_eq!(texts(&folder.file(name, "text\r\nb\r\n\r\nc\r\n\r\n\r\n"), "text"), expected, "{name}");
    }
    // Written as text twice; with the ends of old Macintoshes; and with a record that is skipped.
    let plain = [(2, "b"), (3, "c")].map(|(line, text)| (line, text.to_string()));
    assert_eq!(texts(&folder.file("twice.csv", "text\r\r\nb\r\r\nc\r\r\n"), "text"), plain);
    let of_macintosh: Vec<String> = texts(&folder.file("mac.csv", "text,n\r\"b,\",1\rc,2\r"), "text").into_iter().map(|t| t.1).collect();
    assert_eq!(of_macintosh, ["b,", "c"]);
    assert_eq!(texts(&folder.file("mac1.csv", "text\rb\rc\r"), "text").len(), 2);
    let bad = open(&folder.file("bad.csv", b"text\nb\n\xff\nc\n"), &Options::columns(&["text"])).unwrap();
    let kinds: Vec<String> = bad.map(|row| row.map_or_else(|_| "bad".into(), |r| r.require("text").unwrap().to_string())).collect();
    assert_eq!(kinds, ["b", "bad", "c"]);
    let two = [(2, "b"), (4, "c")].map(|(line, text)| (line, text.to_string()));
    assert_eq!(texts(&folder.file("two.tsv", "text\tx\nb\t1\n\nc\t2\n\n"), "text"), two);
    assert_eq!(texts(&folder.file("two.csv", "text,x\nb,1\n\nc,2\n\n"), "text"), two);
}
