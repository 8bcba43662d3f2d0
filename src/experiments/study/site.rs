//! Pages as Markdown and as one HTML file that needs no network.

use super::claims::{Claim, State};
use super::page::{Drawing, Page};
use crate::table::align;
use anyhow::Result;
use serde_json::{Map, Value};

const PAGE: &str = include_str!("study.html");

pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// `code` between backticks, and what stands between double asterisks in bold.
fn inline(text: &str) -> String {
    let between = |text: &str, mark: &str, tag: &str| -> String {
        text.split(mark).enumerate().map(|(i, part)| if i % 2 == 1 { format!("<{tag}>{part}</{tag}>") } else { part.into() }).collect()
    };
    between(&between(&escape(text), "`", "code"), "**", "b")
}

pub fn csv(table: &[Vec<String>]) -> Result<String> {
    let mut out = csv::Writer::from_writer(Vec::new());
    table.iter().try_for_each(|row| out.write_record(row))?;
    Ok(String::from_utf8(out.into_inner()?)?)
}

/// A row an object.
pub fn objects(table: &[Vec<String>]) -> Value {
    let Some((header, rows)) = table.split_first() else { return Value::Array(Vec::new()) };
    assert!(header.iter().enumerate().all(|(i, name)| !header[..i].contains(name)), "two columns of one name: {header:?}");
    let object =
        |row: &Vec<String>| Value::Object(header.iter().cloned().zip(row.iter().map(|c| Value::from(c.as_str()))).collect::<Map<_, _>>());
    Value::Array(rows.iter().map(object).collect())
}

fn markdown_table(table: &[Vec<String>]) -> String {
    let line = |row: &Vec<String>| format!("| {} |\n", row.iter().map(|c| c.replace('|', "\\|")).collect::<Vec<_>>().join(" | "));
    let rule = |row: &Vec<String>| format!("|{}\n", "---|".repeat(row.len()));
    table.iter().enumerate().map(|(i, row)| if i == 0 { line(row) + &rule(row) } else { line(row) }).collect()
}

/// One experiment.
pub fn markdown(page: &Page) -> String {
    let list = |items: &[String]| items.iter().map(|item| format!("- {item}\n")).collect::<String>();
    let charts: String = page.charts.iter().map(|c| format!("\n![{}]({}.png)\n\n{}\n", page.title, c.name, c.caption)).collect();
    let findings = if page.findings.is_empty() { String::new() } else { format!("\n## What the numbers say\n\n{}", list(&page.findings)) };
    let claims =
        if page.claims.is_empty() { String::new() } else { format!("\n## What the paper's claims come to\n\n{}", list(&page.claims)) };
    let open = if page.open.is_empty() { String::new() } else { format!("\nWhat would settle what is open here: {}.\n", page.open) };
    format!(
        "# {}\n\n{}\n\n{}{findings}{claims}{open}{charts}\n## Notes\n\n{}\n{}\n",
        page.title,
        page.about,
        markdown_table(&page.table),
        list(&page.notes),
        machine(&page.environment)
    )
}

/// The machine in a line.
fn machine(environment: &Value) -> String {
    let text = |key: &str| environment[key].as_str().unwrap_or("unknown").to_string();
    format!(
        "Machine: {}, {} threads, {}; libtorch {}, linformer {} ({}).",
        text("cpu"),
        environment["threads"],
        text("device"),
        text("libtorch"),
        text("version"),
        text("git_revision")
    )
}

/// The claims, for `docs/reproduction.md`.
pub fn reproduction(claims: &[Claim]) -> String {
    let mut text = String::from(
        "# What the paper claims, and what was seen\n\nMade by `linformer report experiments/results` from the committed numbers; a test holds this file against them. No state is\ntyped: each follows by the rule beside it. Values of p are those of one comparison each, not corrected for how many there are.\n\n",
    );
    let states = [State::Confirmed, State::NotConfirmed, State::Contradicted, State::Untestable, State::NotRun];
    let count = |state: State| claims.iter().filter(|c| c.state == state).count();
    let counts: Vec<String> = states.iter().map(|s| format!("{} {}", count(*s), s.words())).collect();
    text += &format!("{} claims: {}.\n\n", claims.len(), counts.join(", "));
    let heading = |i: usize, claim: &Claim| format!("{}. {}", i + 1, claim.place);
    let row = |(i, claim): (usize, &Claim)| {
        let link = format!("[{}](#{})", i + 1, anchor(&heading(i, claim)));
        vec![link, claim.place.into(), claim.text.into(), claim.state.words().into()]
    };
    let header = ["#", "where", "claim", "state"].map(str::to_string).to_vec();
    text += &(markdown_table(&std::iter::once(header).chain(claims.iter().enumerate().map(row)).collect::<Vec<_>>()) + "\n");
    for (i, claim) in claims.iter().enumerate() {
        let link = match claim.state {
            State::NotRun | State::Untestable if !claim.evidence.contains("at n =") => String::new(),
            _ => format!(" ([numbers](../experiments/results/{}/page.md))", claim.folder),
        };
        text += &format!(
            "## {}\n\n> {}\n\n**{}**: {}{link}.\n\nRule: {}.\n\nWhat would settle it: {}.\n\n",
            heading(i, claim),
            claim.text,
            claim.state.words(),
            claim.evidence.trim_end_matches('.'),
            claim.rule,
            claim.would_decide
        );
    }
    text.trim_end().to_string() + "\n"
}

/// How GitHub names the place of a heading.
fn anchor(heading: &str) -> String {
    let kept = |c: char| (c.is_alphanumeric() || c == ' ' || c == '-').then(|| if c == ' ' { '-' } else { c.to_ascii_lowercase() });
    heading.chars().filter_map(kept).collect()
}

/// The claims as a table of text.
pub fn claims_text(claims: &[Claim]) -> String {
    let header = ["claim", "state"].map(str::to_string).to_vec();
    let row = |c: &Claim| vec![format!("{}: {}", c.place, c.text.chars().take(80).collect::<String>()), c.state.words().to_string()];
    align(std::iter::once(header).chain(claims.iter().map(row)).collect())
}

/// The whole report; `drawn` holds each page's SVGs with their captions.
pub fn html(pages: &[Page], drawn: &[Vec<(String, String)>], claims: &[Claim]) -> String {
    let anchor = |page: &Page| page.folder.replace('/', "-");
    let contents: String = pages.iter().map(|p| format!("<li><a href=\"#{}\">{}</a></li>", anchor(p), escape(&p.title))).collect();
    let row = |c: &Claim| {
        format!(
            "<tr><td>{}</td><td>{}</td><td class=\"state\">{}</td><td>{}. <span class=\"note\">Rule: {}. What would settle it: {}.</span></td></tr>\n",
            escape(c.place),
            escape(c.text),
            c.state.words(),
            escape(c.evidence.trim_end_matches('.')),
            escape(c.rule),
            escape(c.would_decide)
        )
    };
    let table: String = claims.iter().map(row).collect();
    let table = format!("<table class=\"claims\"><thead><tr><th>where</th><th>claim</th><th>state</th><th>evidence</th></tr></thead><tbody>\n{table}</tbody></table>");
    let sections: String = pages.iter().zip(drawn).map(|(page, drawn)| section(page, &anchor(page), drawn)).collect();
    PAGE.replace("{contents}", &format!("<li><a href=\"#claims\">What the paper claims</a></li>{contents}"))
        .replace("{claims}", &table)
        .replace("{pages}", &sections)
}

fn section(page: &Page, anchor: &str, drawn: &[(String, String)]) -> String {
    let cells = |row: &Vec<String>, tag: &str| row.iter().map(|c| format!("<{tag}>{}</{tag}>", escape(c))).collect::<String>();
    let head = page.table.first().map(|row| cells(row, "th")).unwrap_or_default();
    let body: String = page.table.iter().skip(1).map(|row| format!("<tr>{}</tr>\n", cells(row, "td"))).collect();
    let list = |items: &[String]| items.iter().map(|item| format!("<li>{}</li>", inline(item))).collect::<String>();
    let claims = if page.claims.is_empty() {
        String::new()
    } else {
        format!("<p>What the paper's claims come to:</p>\n<ul>{}</ul>\n", list(&page.claims))
    };
    let open =
        if page.open.is_empty() { String::new() } else { format!("<p>What would settle what is open here: {}.</p>\n", inline(&page.open)) };
    let figures: String = drawn
        .iter()
        .zip(&page.charts)
        .map(|((svg, caption), picture)| {
            // Colours that are numbers stay what they are in the dark.
            let class = if matches!(picture.chart, Drawing::Heat(_)) { " class=\"heat\"" } else { "" };
            format!("<figure{class}>{svg}<figcaption>{}</figcaption></figure>\n", escape(caption))
        })
        .collect();
    format!(
        "<h2 id=\"{anchor}\">{}</h2>\n<p>{}</p>\n<div class=\"wide\"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n<ul>{}</ul>\n{claims}{open}{figures}<ul class=\"note\">{}<li>{}</li></ul>\n",
        escape(&page.title),
        inline(&page.about),
        list(&page.findings),
        list(&page.notes),
        escape(&machine(&page.environment)),
    )
}
