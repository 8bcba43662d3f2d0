//! A grid of numbers as colours, with the number in each cell.

use super::plot::{failed, frame, Chart, Drawn, FONT};
use plotters::coord::Shift;
use plotters::prelude::*;

/// Rows from the top, columns from the left.
#[derive(Clone, Debug)]
pub struct HeatMap {
    pub title: String,
    pub x: String,
    pub y: String,
    /// One row of values each.
    pub rows: Vec<Vec<f64>>,
    pub digits: usize,
}

/// Five points of viridis, dark to light: readable in grey and by the colour-blind.
const SCALE: [(f64, f64, f64); 5] =
    [(68.0, 1.0, 84.0), (59.0, 82.0, 139.0), (33.0, 145.0, 140.0), (94.0, 201.0, 98.0), (253.0, 231.0, 37.0)];

/// The colour of a share between 0 and 1.
fn colour(share: f64) -> RGBColor {
    let at = share.clamp(0.0, 1.0) * (SCALE.len() - 1) as f64;
    let low = (at.floor() as usize).min(SCALE.len() - 2);
    let part = at - low as f64;
    let (a, b) = (SCALE[low], SCALE[low + 1]);
    let mix = |x: f64, y: f64| (x + (y - x) * part).round() as u8;
    RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}

impl Chart for HeatMap {
    fn draw<B: DrawingBackend>(&self, area: DrawingArea<B, Shift>, scale: u32) -> Drawn {
        area.fill(&WHITE).map_err(failed)?;
        let (rows, columns) = (self.rows.len().max(1), self.rows.iter().map(Vec::len).max().unwrap_or(1).max(1));
        let values = self.rows.iter().flatten().filter(|v| v.is_finite());
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
        let share = |v: f64| if high > low { (v - low) / (high - low) } else { 0.5 };
        let title = if low.is_finite() { format!("{}  ({low:.3} dark to {high:.3} light)", self.title) } else { self.title.clone() };
        let mut chart =
            frame(&area, &title, scale).build_cartesian_2d(-0.5..columns as f64 - 0.5, 0.5 - rows as f64..0.5).map_err(failed)?;
        let whole = |v: &f64| if v.fract().abs() < 1e-6 { format!("{:.0}", v.abs()) } else { String::new() };
        chart
            .configure_mesh()
            .disable_mesh()
            .x_labels(columns + 2)
            .y_labels(rows + 2)
            .x_desc(&self.x)
            .y_desc(&self.y)
            .axis_desc_style((FONT, 17 * scale))
            .label_style((FONT, 15 * scale))
            .x_label_formatter(&whole)
            .y_label_formatter(&whole)
            .draw()
            .map_err(failed)?;
        let crowded = rows > 16 || columns > 16;
        for (y, row) in self.rows.iter().enumerate() {
            for (x, value) in row.iter().enumerate().filter(|(_, v)| v.is_finite()) {
                // The first row stands at the top.
                let (x, y, part) = (x as f64, -(y as f64), share(*value));
                let cell = Rectangle::new([(x - 0.5, y - 0.5), (x + 0.5, y + 0.5)], colour(part).filled());
                chart.draw_series([cell]).map_err(failed)?;
                if !crowded {
                    let ink = if part < 0.6 { WHITE } else { BLACK };
                    let style = (FONT, 14 * scale).into_font().color(&ink).pos(plotters::style::text_anchor::Pos::new(
                        plotters::style::text_anchor::HPos::Center,
                        plotters::style::text_anchor::VPos::Center,
                    ));
                    chart.draw_series([Text::new(format!("{value:.*}", self.digits), (x, y), style)]).map_err(failed)?;
                }
            }
        }
        area.present().map_err(failed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_has_its_number_and_its_colour() {
        let folder = tempfile::tempdir().unwrap();
        let rows = vec![vec![0.25, 0.5], vec![0.75, f64::NAN]];
        let map = HeatMap { title: "Rank".into(), x: "head".into(), y: "layer".into(), rows, digits: 2 };
        let svg = map.render(&folder.path().join("map")).unwrap();
        for part in ["0.25", "0.50", "0.75", "head", "layer", "#440154", "#FDE725"] {
            assert!(svg.contains(part), "{part}");
        }
        assert!(!svg.contains("NaN"));
        assert!(folder.path().join("map.png").exists());
    }
}
