//! The page of time and memory against n (paper, Table 3 and Figure 2).

use crate::experiments::efficiency::is_training;
use crate::experiments::paper::Table3;
use serde_json::Value;

const MIB: f64 = 1048576.0;

fn cells(record: &Value) -> impl Iterator<Item = &Value> {
    record["cells"].as_array().into_iter().flatten()
}

/// A cell by its n and what attends (`materialised`, `fused`, `k=128`, `k=128 stored`).
pub fn cell<'a>(record: &'a Value, n: i64, attention: &str) -> Option<&'a Value> {
    cells(record).find(|c| c["n"] == n && c["attention"] == attention)
}

/// n of the cells, ascending.
pub fn lengths(record: &Value) -> Vec<i64> {
    let mut all: Vec<i64> = cells(record).filter_map(|c| c["n"].as_i64()).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// How many times what `attention` takes does `base` take at n: time a token, and memory (the largest batch, the other way round).
pub fn saved(record: &Value, n: i64, attention: &str, base: &str) -> (Option<f64>, Option<f64>) {
    let (Some(ours), Some(base)) = (cell(record, n, attention), cell(record, n, base)) else { return (None, None) };
    let ratio = |a: &Value, b: &Value| a.as_f64().zip(b.as_f64()).map(|(a, b)| a / b);
    (ratio(&base["microseconds_per_token"], &ours["microseconds_per_token"]), ratio(&ours["largest_batch"], &base["largest_batch"]))
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_string(), |v| format!("{v:.digits$}"))
}

/// One row a cell, a header first.
pub fn table(record: &Value) -> Vec<Vec<String>> {
    let header = [
        "n",
        "attention",
        "us a token",
        "lowest to highest",
        "passes",
        "/ products",
        "x materialised",
        "published time",
        "x fused",
        "MiB a sequence",
        "computed",
        "largest batch",
        "batch, x materialised",
        "published memory",
    ];
    std::iter::once(header.map(str::to_string).to_vec()).chain(cells(record).map(|c| row(record, c))).collect()
}

fn row(record: &Value, cell: &Value) -> Vec<String> {
    let (n, attention) = (cell["n"].as_i64().unwrap_or(0), cell["attention"].as_str().unwrap_or_default());
    let k = attention.strip_prefix("k=").and_then(|k| k.trim_end_matches(" stored").parse().ok());
    // The paper has inference alone.
    let published = k.filter(|_| !is_training(record)).map_or((None, None), |k| Table3::cell(n, k));
    let (time, batch) = saved(record, n, attention, "materialised");
    let mebibytes = |key: &str| cell[key].as_f64().map(|b| b / MIB);
    let seconds: Vec<f64> = cell["seconds"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    let a_token = |seconds: f64| seconds * 1e6 / cell["tokens"].as_f64().unwrap_or(f64::NAN);
    let ends = seconds.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), s| (l.min(*s), h.max(*s)));
    let microseconds = cell["microseconds_per_token"].as_f64();
    vec![
        n.to_string(),
        attention.into(),
        microseconds.map_or_else(|| too_large(cell), |t| format!("{t:.2}")),
        if seconds.len() > 1 { format!("{:.2} to {:.2}", a_token(ends.0), a_token(ends.1)) } else { "-".into() },
        seconds.len().to_string(),
        number(cell["over_floor"].as_f64(), 2),
        number(time.filter(|_| attention != "materialised"), 2),
        number(published.0, 1),
        number(saved(record, n, attention, "fused").0.filter(|_| attention != "fused"), 2),
        number(mebibytes("bytes"), 1),
        number(mebibytes("computed_bytes"), 1),
        number(cell["largest_batch"].as_f64(), 0),
        number(batch.filter(|_| attention != "materialised"), 1),
        number(published.1, 1),
    ]
}

/// A cell that no memory was there for: what it would take, where two shorter ones tell.
fn too_large(cell: &Value) -> String {
    let gibibytes = number(cell["computed_bytes"].as_f64().map(|b| b / MIB / 1024.0), 0);
    let time = cell["extrapolated_microseconds_per_token"].as_f64().map(|t| format!("~{t:.0}; ")).unwrap_or_default();
    format!("{time}out of memory: {gibibytes} GiB")
}

/// What was done about other processes, where the record says.
fn disturbed(record: &Value) -> String {
    let counts: Vec<u64> = cells(record).filter_map(|c| c["disturbed_passes"].as_u64()).collect();
    match counts.iter().sum::<u64>() {
        _ if counts.is_empty() => String::new(),
        count => format!("; a pass was made again, up to three times, while other processes took more than a tenth of a core, and {count} stayed disturbed all the same"),
    }
}

/// What the columns are.
pub fn notes(record: &Value) -> Vec<String> {
    let settings = &record["efficiency"];
    let is_training = is_training(record);
    let has_stored = cells(record).any(|c| c["attention"].as_str().is_some_and(|a| a.ends_with(" stored")));
    let stored = if has_stored {
        " k=... stored: a Linformer of libtorch's operations with its scores stored, the paper's own comparison."
    } else {
        ""
    };
    let on_gpu = settings["device"].as_str().is_some_and(|device| device.starts_with("cuda"));
    let text = |key: &str| settings[key].as_str().map_or_else(|| settings[key].to_string(), str::to_string);
    vec![
        format!(
            "{} layer(s) of width {}, {} sharing, {}, batches of about {} tokens (fewer where stored scores would not fit); medians of the passes, of which those of one n took turns{}.",
            settings["model"]["num_hidden_layers"],
            settings["model"]["hidden_size"],
            settings["model"]["attention"]["sharing"].as_str().unwrap_or_default(),
            text("precision"),
            text("tokens"),
            disturbed(record)
        ),
        "materialised: full attention with its scores stored, as the paper's baseline has it. fused: full attention whose scores are never stored, which the paper did not have. k=...: this program's Linformer, which stores none either.".to_string() + stored,
        format!("out of memory: one sequence would need so much, by computation, and more than {} GiB were not tried; ~ before it: microseconds a token on a line in n through the two longest that were measured.", text("largest_gib")),
        match (is_training, on_gpu) {
            (true, _) => "The paper has no table of training: its Table 3 is of inference.".into(),
            (false, true) => PUBLISHED.into(),
            (false, false) => format!("/ products: over the time of the Linformer's matrix products alone, as libtorch makes them in the blocks of rows that a pass takes. {PUBLISHED}"),
        },
        if on_gpu { "On a GPU memory is what libtorch's allocator hands out. ".to_string() } else { String::new() }
            + &format!("Memory is the peak of a pass over one sequence beyond the weights, in a process of its own, after a pass like it: buffers that libtorch keeps are not counted. Batches are those that so many fit into {} GiB, not tried themselves.", text("memory_gib")),
    ]
}

const PUBLISHED: &str = "Published: of inference, ratios to the paper's materialised attention on a 16 GB GPU (Table 3).";
