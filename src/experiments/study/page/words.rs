//! Comparisons in words.

use crate::experiments::results::Comparison;

pub fn p_value(p: f64) -> String {
    if p < 0.001 {
        "< 0.001".into()
    } else {
        format!("{p:.3}")
    }
}

/// A comparison in words; none of them is chosen by hand.
pub fn sentence(name: &str, c: &Comparison, unit: &str) -> String {
    let Some(test) = c.test else {
        let paper = c.paper.map(|p| format!(" (published: {p:+.4})")).unwrap_or_default();
        return format!("{name} differs from {} by {:+.4} {unit}{paper}: seeds too few, or too alike, to say more.", c.other, c.difference);
    };
    let (low, high) = test.interval();
    let seeds = test.difference.count;
    let seen = if low > 0.0 || high < 0.0 {
        let more = if c.difference > 0.0 { "more" } else { "less" };
        format!("{name} has {:.4} {unit} {more} than {} ({seeds} seeds, p {})", c.difference.abs(), c.other, p_with_sign(test.p))
    } else {
        format!("{seeds} seeds do not tell {name} from {} ({:+.4} {unit}, {low:+.4} to {high:+.4})", c.other, c.difference)
    };
    let Some(paper) = c.paper else { return seen + "." };
    let beside = if (low..=high).contains(&paper) {
        "within our interval".to_string()
    } else if paper != 0.0 && c.difference / paper > 0.0 && (low > 0.0 || high < 0.0) {
        let ratio = c.difference / paper;
        let digits = usize::from(ratio < 10.0);
        format!("of the same sign; ours is about {ratio:.digits$} times as large")
    } else {
        "outside our interval".to_string()
    };
    format!("{seen}; the published {paper:+.4} is {beside}.")
}

fn p_with_sign(p: f64) -> String {
    if p < 0.001 {
        "< 0.001".into()
    } else {
        format!("= {p:.3}")
    }
}
