//! Any bytes under any name: no reader panics, and none takes more memory than a record may.
#![allow(clippy::unwrap_used)]

use super::lines::Lines;
use super::*;
use proptest::prelude::*;

const NAMES: [&str; 12] =
    ["a.txt", "a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.txt.gz", "a.jsonl.zst", "a.csv.bz2", "a.tsv.xz", "b.csv", "b.tsv", "b.jsonl"];

/// Bytes that readers look at, so that random input gets past the first check.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let pieces = prop_oneof![
        any::<Vec<u8>>(),
        Just(b"\"".to_vec()),
        Just(b"\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"\t,".to_vec()),
        Just(b"\0".to_vec()),
        Just("\u{feff}é".as_bytes().to_vec()),
        Just(b"{\"text\": \"x\", \"n\": [1]}".to_vec()),
        Just(b"text,n\n".to_vec()),
    ];
    proptest::collection::vec(pieces, 0..40).prop_map(|parts| parts.concat())
}

fn read_all(path: &Path) {
    let options = Options { max_record: 4096, ..Options::default() };
    for header in [true, false] {
        if let Ok(rows) = open(path, &Options { header, ..options.clone() }) {
            let rows: Vec<_> = rows.collect();
            assert!(rows.iter().flatten().all(|r| r.values.iter().flatten().all(|v| !v.contains('\0') && v.len() <= 1 << 20)));
            // Lines never go back.
            assert!(rows.iter().flatten().collect::<Vec<_>>().windows(2).all(|pair| pair[0].line <= pair[1].line));
        }
    }
    if let Ok(lines) = Lines::open(path, 4096) {
        assert!(lines.flatten().all(|l| l.text.len() <= 4096 && !l.text.contains(['\n', '\0'])));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_or_refused(name in 0..NAMES.len(), bytes in bytes()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAMES[name]);
        std::fs::write(&path, bytes).unwrap();
        read_all(&path);
    }

    /// A real file with some bytes changed, or its end cut off.
    #[test]
    fn damaged_files_are_read_or_refused(which in 0..3usize, at in any::<prop::sample::Index>(), to in any::<u8>(), cut in any::<Option<prop::sample::Index>>()) {
        let files: [(&str, &[u8]); 3] = [
            ("a.parquet", include_bytes!("../../../tests/fixtures/readers/snappy.parquet")),
            ("b.parquet", include_bytes!("../../../tests/fixtures/readers/zstd.parquet")),
            ("a.txt.xz", include_bytes!("../../../tests/fixtures/readers/lines.txt.xz")),
        ];
        let (name, good) = files[which];
        let mut bytes = good.to_vec();
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Some(cut) = cut {
            bytes.truncate(cut.index(good.len()));
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        read_all(&path);
    }

    /// What was written as CSV or TSV comes back.
    #[test]
    fn tables_come_back(rows in proptest::collection::vec(proptest::collection::vec("[^\0\r]{0,12}", 2..3), 1..12)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.csv");
        let mut out = csv::WriterBuilder::new().quote_style(csv::QuoteStyle::Always).from_path(&path).unwrap();
        out.write_record(["x", "y"]).unwrap();
        rows.iter().for_each(|row| out.write_record(row).unwrap());
        out.flush().unwrap();
        let read: Vec<Vec<String>> = open(&path, &Options::default()).unwrap().map(|r| r.unwrap().values.into_iter().flatten().collect()).collect();
        prop_assert_eq!(&read, &rows);
        let plain: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|v| v.replace(['\t', '\n'], " ") + "\"").collect()).collect();
        let path = folder.path().join("a.tsv");
        std::fs::write(&path, format!("x\ty\n{}", plain.iter().map(|row| row.join("\t") + "\n").collect::<String>())).unwrap();
        let read: Vec<Vec<String>> = open(&path, &Options::default()).unwrap().map(|r| r.unwrap().values.into_iter().flatten().collect()).collect();
        prop_assert_eq!(&read, &plain);
    }
}
