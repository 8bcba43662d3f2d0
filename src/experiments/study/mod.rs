//! The report on the paper, from committed numbers alone: a page an experiment, the paper beside ours, in words that are
//! derived from the numbers; `report.html` with all of it, and the list of the paper's claims with their state.
//!
//! | module | what |
//! |---|---|
//! | [`evidence`] | what lies in a folder of results |
//! | [`page`] | an experiment's table, charts and sentences |
//! | [`efficiency`] | the page of time and memory |
//! | [`claims`] | what the paper says, and what our numbers say to it |
//! | [`site`] | Markdown and HTML |

pub mod claims;
pub mod efficiency;
pub mod evidence;
pub mod page;
pub mod site;

use crate::durable::replace;
use anyhow::{bail, Context, Result};
use evidence::Evidence;
use std::path::{Path, PathBuf};

/// Whether a folder holds results of experiments (and not runs).
pub fn is_study(dir: &Path) -> bool {
    Evidence::files(dir).is_ok_and(|files| !files.is_empty())
}

/// Writes every page, plot and table below `dir`, `report.html` and `reproduction.md` in it, and gives the list of claims.
pub fn write(dir: &Path) -> Result<String> {
    let evidence = Evidence::read(dir)?;
    let claims = claims::all(&evidence);
    let pages = page::pages(&evidence, &claims);
    if pages.is_empty() {
        bail!(
            "{}: no results are here (results.json, spectrum.json, theorems.json, shift.json, efficiency.json or scaling.json)",
            dir.display()
        );
    }
    let save = |path: &Path, text: &str| replace(path, text.as_bytes()).with_context(|| path.display().to_string());
    let mut drawn = Vec::new();
    for page in &pages {
        let folder = dir.join(&page.folder);
        let charts = page.charts.iter().map(|chart| Ok((chart.render(&folder)?, chart.caption.clone()))).collect::<Result<Vec<_>>>()?;
        // What an earlier report drew there and this one does not.
        let is_drawn = |path: &PathBuf| page.charts.iter().any(|chart| path.file_stem().is_some_and(|stem| stem == chart.name.as_str()));
        for path in pictures_of_curves(&folder).filter(|path| !is_drawn(path)) {
            drop(std::fs::remove_file(path));
        }
        drawn.push(charts);
    }
    for (name, text) in texts_of(&pages, &claims)? {
        save(&dir.join(name), &text)?;
    }
    save(&dir.join("report.html"), &site::html(&pages, &drawn, &claims))?;
    Ok(site::claims_text(&claims))
}

fn pictures_of_curves(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let is_one = |path: &PathBuf| {
        let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let ending = path.extension().and_then(|e| e.to_str());
        page::CURVES.iter().any(|name| stem.starts_with(name)) && matches!(ending, Some("png" | "svg"))
    };
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).filter(is_one)
}

/// Every text file that [`write()`] makes, by its name below the folder: what a test holds committed files against.
pub fn texts(dir: &Path) -> Result<Vec<(String, String)>> {
    let evidence = Evidence::read(dir)?;
    let claims = claims::all(&evidence);
    texts_of(&page::pages(&evidence, &claims), &claims)
}

fn texts_of(pages: &[page::Page], claims: &[claims::Claim]) -> Result<Vec<(String, String)>> {
    let mut texts = vec![("reproduction.md".to_string(), site::reproduction(claims))];
    for page in pages {
        texts.push((format!("{}/page.md", page.folder), site::markdown(page)));
        texts.push((format!("{}/table.csv", page.folder), site::csv(&page.table)?));
        texts.push((format!("{}/table.json", page.folder), serde_json::to_string_pretty(&site::objects(&page.table))? + "\n"));
    }
    Ok(texts)
}

#[cfg(test)]
mod tests;
