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
use std::path::Path;

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
        save(&folder.join("table.json"), &(serde_json::to_string_pretty(&site::objects(&page.table))? + "\n"))?;
        let charts = page.charts.iter().map(|chart| Ok((chart.render(&folder)?, chart.caption.clone()))).collect::<Result<Vec<_>>>()?;
        // What an earlier report drew there and this one does not.
        for name in page::CURVES.iter().filter(|name| page.charts.iter().all(|chart| chart.name != **name)) {
            ["png", "svg"].iter().for_each(|ending| drop(std::fs::remove_file(folder.join(name).with_extension(ending))));
        }
        drawn.push(charts);
    }
    for (name, text) in texts_of(&pages, &claims)? {
        save(&dir.join(name), &text)?;
    }
    save(&dir.join("report.html"), &site::html(&pages, &drawn, &claims))?;
    Ok(site::claims_text(&claims))
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
    }
    Ok(texts)
}

#[cfg(test)]
mod tests;
