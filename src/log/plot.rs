//! Line and bar charts as PNG and SVG, with a font of our own: no system fonts are needed.

use crate::durable::replace;
use plotters::coord::ranged1d::{AsRangedCoord, KeyPointHint, Ranged};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{register_font, FontStyle};
use std::path::Path;
use std::sync::Once;

const SIZE: (u32, u32) = (900, 540);
pub(super) const FONT: &str = "report";
/// Grey, for what was not measured here.
const REFERENCE: RGBColor = RGBColor(120, 120, 120);
/// The first seven are colour-blind safe (Okabe and Ito).
const COLOURS: [RGBColor; 12] = [
    RGBColor(0, 0, 0),
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(140, 86, 75),
    RGBColor(106, 61, 154),
    RGBColor(128, 128, 0),
    RGBColor(0, 0, 128),
    RGBColor(178, 34, 52),
];

/// One curve.
#[derive(Clone, Debug)]
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    /// Grey and thin: a reference that was not measured here.
    pub reference: bool,
    /// Points are marked as well as joined.
    pub marked: bool,
}

/// A chart of curves.
#[derive(Clone, Debug)]
pub struct LineChart {
    pub title: String,
    pub x: String,
    pub y: String,
    pub log_x: bool,
    pub log_y: bool,
    pub series: Vec<Series>,
}

/// Groups of bars, with an optional line per group (a baseline).
#[derive(Clone, Debug)]
pub struct BarChart {
    pub title: String,
    pub y: String,
    /// Name and values, one a series.
    pub groups: Vec<(String, Vec<Option<f64>>)>,
    pub series: Vec<String>,
    /// What each series has to beat.
    pub baselines: Vec<Option<f64>>,
    pub y_range: (f64, f64),
}

/// A chart could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("plot: {0}")]
pub struct PlotError(String);

pub type Drawn = Result<(), PlotError>;

pub(super) fn failed(error: impl std::fmt::Display) -> PlotError {
    PlotError(error.to_string())
}

/// Something that can be drawn to a file or to text.
pub trait Chart {
    fn draw<B: DrawingBackend>(&self, area: DrawingArea<B, Shift>) -> Drawn;

    /// Writes `path` with the extension png, and gives the same chart as SVG.
    fn render(&self, path: &Path) -> Result<String, PlotError> {
        use_own_font();
        // The backend knows the format by the name.
        let (png, aside) = (path.with_extension("png"), path.with_extension("tmp.png"));
        self.draw(BitMapBackend::new(&aside, SIZE).into_drawing_area())?;
        std::fs::rename(&aside, &png).map_err(failed)?;
        let mut svg = String::new();
        self.draw(SVGBackend::with_string(&mut svg, SIZE).into_drawing_area())?;
        // Text of the SVG is set in what the reader's browser has.
        let svg = svg.replace(&format!("font-family=\"{FONT}\""), "font-family=\"Open Sans, Helvetica, Arial, sans-serif\"");
        replace(&path.with_extension("svg"), svg.as_bytes()).map_err(failed)?;
        Ok(svg)
    }
}

fn use_own_font() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let font = include_bytes!("font/OpenSans-Regular.ttf");
        // Fails only for bytes that are no font.
        let _ = register_font(FONT, FontStyle::Normal, font);
    });
}

fn colour(series: &Series, index: usize) -> RGBColor {
    if series.reference {
        REFERENCE
    } else {
        COLOURS[index % COLOURS.len()]
    }
}

impl Chart for LineChart {
    fn draw<B: DrawingBackend>(&self, area: DrawingArea<B, Shift>) -> Drawn {
        let (x, y) = (self.range(|p| p.0, self.log_x, 0.0), self.range(|p| p.1, self.log_y, 0.06));
        match (self.log_x, self.log_y) {
            (false, false) => self.draw_on(area, x, y),
            (true, false) => self.draw_on(area, (x.start..x.end).log_scale(), y),
            (false, true) => self.draw_on(area, x, (y.start..y.end).log_scale()),
            (true, true) => self.draw_on(area, (x.start..x.end).log_scale(), (y.start..y.end).log_scale()),
        }
    }
}

impl LineChart {
    fn range(&self, of: impl Fn(&(f64, f64)) -> f64, log: bool, margin: f64) -> std::ops::Range<f64> {
        let values: Vec<f64> = self.series.iter().flat_map(|s| s.points.iter().map(&of)).filter(|v| v.is_finite()).collect();
        let (low, high) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
        if !low.is_finite() {
            return if log { 1.0..10.0 } else { 0.0..1.0 };
        }
        if log {
            let ratio = (high / low).max(1.05).powf(margin + 0.02);
            return low / ratio..high * ratio;
        }
        let width = (high - low).max(1e-6);
        low - width * margin..high + width * margin
    }

    fn draw_on<B, X, Y>(&self, area: DrawingArea<B, Shift>, x: X, y: Y) -> Drawn
    where
        B: DrawingBackend,
        X: AsRangedCoord<Value = f64>,
        Y: AsRangedCoord<Value = f64>,
        X::CoordDescType: plotters::coord::ranged1d::ValueFormatter<f64>,
        Y::CoordDescType: plotters::coord::ranged1d::ValueFormatter<f64>,
    {
        area.fill(&WHITE).map_err(failed)?;
        let mut chart = frame(&area, &self.title).build_cartesian_2d(x, y).map_err(failed)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(225, 225, 225))
            .x_desc(&self.x)
            .y_desc(&self.y)
            .axis_desc_style((FONT, 17))
            .label_style((FONT, 15))
            .x_label_formatter(&short)
            .y_label_formatter(&short)
            .draw()
            .map_err(failed)?;
        for (i, series) in self.series.iter().enumerate() {
            let colour = colour(series, i);
            let stroke = colour.stroke_width(if series.reference { 1 } else { 2 });
            let line = chart.draw_series(LineSeries::new(series.points.iter().copied(), stroke)).map_err(failed)?;
            line.label(legend_name(&series.name)).legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], stroke));
            if series.marked {
                chart.draw_series(series.points.iter().map(|p| Circle::new(*p, 4, colour.filled()))).map_err(failed)?;
            }
        }
        draw_legend(&mut chart, self.legend_position())?;
        area.present().map_err(failed)
    }

    /// The place at the edge where the legend hides the least of the curves.
    fn legend_position(&self) -> SeriesLabelPosition {
        let (x, y) = (self.range(|p| p.0, self.log_x, 0.0), self.range(|p| p.1, self.log_y, 0.06));
        let share = |v: f64, range: &std::ops::Range<f64>, log: bool| match log {
            true => (v / range.start).ln() / (range.end / range.start).ln(),
            false => (v - range.start) / (range.end - range.start),
        };
        let place = |p: &(f64, f64)| (share(p.0, &x, self.log_x), share(p.1, &y, self.log_y));
        // Points along the lines, not their ends alone.
        let mut along = Vec::new();
        for series in self.series.iter().filter(|s| !s.reference) {
            let places: Vec<_> = series.points.iter().map(place).collect();
            for pair in places.windows(2) {
                along.extend(
                    (0..=8)
                        .map(|i| f64::from(i) / 8.0)
                        .map(|t| (pair[0].0 + t * (pair[1].0 - pair[0].0), pair[0].1 + t * (pair[1].1 - pair[0].1))),
                );
            }
        }
        // About what the legend takes of the plot, in shares of its sides.
        let longest = self.series.iter().map(|s| s.name.len()).max().unwrap_or(0) as f64;
        let (wide, high) = (((longest * 8.5 + 60.0) / 790.0).min(1.0), ((self.series.len() as f64 * 20.0 + 20.0) / 430.0).min(1.0));
        let hidden = |left: f64, below: f64| {
            let is_hidden = |(x, y): &&(f64, f64)| (left..left + wide).contains(x) && (below..below + high).contains(y);
            along.iter().filter(is_hidden).count()
        };
        let (right, top, middle, centre) = (1.0 - wide, 1.0 - high, (1.0 - wide) / 2.0, (1.0 - high) / 2.0);
        let places = [
            (right, top, SeriesLabelPosition::UpperRight),
            (right, 0.0, SeriesLabelPosition::LowerRight),
            (0.0, 0.0, SeriesLabelPosition::LowerLeft),
            (0.0, top, SeriesLabelPosition::UpperLeft),
            (right, centre, SeriesLabelPosition::MiddleRight),
            (0.0, centre, SeriesLabelPosition::MiddleLeft),
            (middle, top, SeriesLabelPosition::UpperMiddle),
            (middle, 0.0, SeriesLabelPosition::LowerMiddle),
        ];
        let [first, rest @ ..] = places;
        rest.into_iter().fold(first, |best, other| if hidden(other.0, other.1) < hidden(best.0, best.1) { other } else { best }).2
    }
}

impl Chart for BarChart {
    fn draw<B: DrawingBackend>(&self, area: DrawingArea<B, Shift>) -> Drawn {
        area.fill(&WHITE).map_err(failed)?;
        let groups = self.groups.len().max(1) as f64;
        let mut chart =
            frame(&area, &self.title).build_cartesian_2d(GroupAxis(groups as usize), self.y_range.0..self.y_range.1).map_err(failed)?;
        let name = |x: &f64| self.groups.get(x.floor() as usize).map(|(name, _)| name.clone()).unwrap_or_default();
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(225, 225, 225))
            .y_desc(&self.y)
            .axis_desc_style((FONT, 17))
            .label_style((FONT, 14))
            .x_label_formatter(&name)
            .y_label_formatter(&short)
            .draw()
            .map_err(failed)?;
        let width = 0.8 / self.series.len().max(1) as f64;
        for (s, series) in self.series.iter().enumerate() {
            let colour = COLOURS[(s + 1) % COLOURS.len()];
            let bars = self.groups.iter().enumerate().filter_map(|(g, (_, values))| {
                let left = g as f64 + 0.1 + s as f64 * width;
                let value = values.get(s).copied().flatten()?;
                Some(Rectangle::new([(left, self.y_range.0), (left + width * 0.92, value)], colour.filled()))
            });
            let drawn = chart.draw_series(bars.collect::<Vec<_>>()).map_err(failed)?;
            drawn.label(legend_name(series)).legend(move |(x, y)| Rectangle::new([(x, y - 6), (x + 16, y + 6)], colour.filled()));
            if let Some(baseline) = self.baselines.get(s).copied().flatten() {
                let line = PathElement::new([(0.0, baseline), (groups, baseline)], colour.stroke_width(1));
                let drawn = chart.draw_series([line]).map_err(failed)?;
                drawn
                    .label(legend_name(&format!("{series}: majority class")))
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(1)));
            }
        }
        draw_legend(&mut chart, SeriesLabelPosition::UpperRight)?;
        area.present().map_err(failed)
    }
}

/// Title and margins, alike in every chart.
pub(super) fn frame<'a, 'b, B: DrawingBackend>(area: &'a DrawingArea<B, Shift>, title: &str) -> ChartBuilder<'a, 'b, B> {
    let mut builder = ChartBuilder::on(area);
    builder.caption(title, (FONT, 22)).margin(14).x_label_area_size(46).y_label_area_size(72);
    builder
}

/// The names of the series, alike in every chart.
/// With room behind it: a browser's own font may be wider than the one that the legend's frame was measured with.
fn legend_name(name: &str) -> String {
    format!("{name}{}", "\u{a0}".repeat(2 + name.len() / 6))
}

fn draw_legend<'a, B, X, Y>(chart: &mut ChartContext<'a, B, Cartesian2d<X, Y>>, position: SeriesLabelPosition) -> Drawn
where
    B: DrawingBackend + 'a,
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .label_font((FONT, 15))
        .position(position)
        .draw()
        .map_err(failed)
}

/// An axis of `n` groups, each one unit wide, labelled in the middle.
struct GroupAxis(usize);

impl Ranged for GroupAxis {
    type FormatOption = plotters::coord::ranged1d::DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        limit.0 + (value / self.0.max(1) as f64 * f64::from(limit.1 - limit.0)) as i32
    }

    fn key_points<H: KeyPointHint>(&self, _: H) -> Vec<f64> {
        (0..self.0).map(|g| g as f64 + 0.5).collect()
    }

    fn range(&self) -> std::ops::Range<f64> {
        0.0..self.0 as f64
    }
}

/// `0.05`, `12`, `3.5M`.
fn short(value: &f64) -> String {
    let plain = |v: f64| {
        let text = format!("{v:.3}");
        text.trim_end_matches('0').trim_end_matches('.').to_string()
    };
    match value.abs() {
        v if v >= 1e6 => format!("{}M", plain(value / 1e6)),
        v if v >= 1e4 => format!("{}k", plain(value / 1e3)),
        _ => plain(*value),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn charts_are_drawn_with_their_text_on_a_machine_without_fonts() {
        let folder = tempfile::tempdir().unwrap();
        let series = |name: &str| Series { name: name.into(), points: vec![(1.0, 20.0), (10.0, 5.0)], reference: false, marked: true };
        let chart = LineChart {
            title: "Title".into(),
            x: "tokens".into(),
            y: "perplexity".into(),
            log_x: true,
            log_y: true,
            series: vec![series("full")],
        };
        let svg = chart.render(&folder.path().join("a")).unwrap();
        assert!(svg.contains("perplexity") && svg.contains("full"));
        assert!(std::fs::metadata(folder.path().join("a.png")).unwrap().len() > 2000);
        let empty = LineChart { series: Vec::new(), ..chart };
        empty.render(&folder.path().join("b")).unwrap();
    }

    #[test]
    fn axis_numbers_are_short() {
        assert_eq!([0.05, 12.0, 3_500_000.0, 20_000.0].map(|v| short(&v)), ["0.05", "12", "3.5M", "20k"]);
    }
}
