//! Line and bar charts as PNG and SVG, with a font of our own: no system fonts are needed.

use crate::durable::replace;
use plotters::coord::ranged1d::{AsRangedCoord, KeyPointHint, Ranged};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{register_font, FontStyle};
use std::ops::Range;
use std::path::Path;
use std::sync::Once;

const SIZE: (u32, u32) = (900, 540);
/// Pixels of a PNG for each unit of [`SIZE`]: letters are set on whole pixels, and at one they stand unevenly.
const PNG_SCALE: u32 = 2;
pub(super) const FONT: &str = "report";
/// Greys, for what was not measured here.
const REFERENCES: [RGBColor; 3] = [RGBColor(120, 120, 120), RGBColor(60, 60, 60), RGBColor(175, 175, 175)];
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
#[derive(Clone, Debug, Default)]
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    /// (x, lowest, highest): shaded behind the curve.
    pub band: Vec<(f64, f64, f64)>,
    /// Grey and thin: a reference that was not measured here.
    pub reference: bool,
    /// Points are marked as well as joined.
    pub marked: bool,
}

impl Series {
    pub fn line(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points, ..Self::default() }
    }

    pub fn marked(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { marked: true, ..Self::line(name, points) }
    }

    pub fn reference(self) -> Self {
        Self { reference: true, ..self }
    }
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
    /// Every length is so many times what it is on 900 x 540 pixels.
    fn draw<B: DrawingBackend>(&self, area: DrawingArea<B, Shift>, scale: u32) -> Drawn;

    /// Writes `path` with the extension png, and gives the same chart as SVG.
    fn render(&self, path: &Path) -> Result<String, PlotError> {
        use_own_font();
        // The backend knows the format by the name.
        let (png, aside) = (path.with_extension("png"), path.with_extension("tmp.png"));
        self.draw(BitMapBackend::new(&aside, (SIZE.0 * PNG_SCALE, SIZE.1 * PNG_SCALE)).into_drawing_area(), PNG_SCALE)?;
        std::fs::rename(&aside, &png).map_err(failed)?;
        let mut svg = String::new();
        self.draw(SVGBackend::with_string(&mut svg, SIZE).into_drawing_area(), 1)?;
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

/// The colour of each series: greys and colours in turns of their own.
fn colours(series: &[Series]) -> Vec<RGBColor> {
    let (mut greys, mut others) = (REFERENCES.iter().cycle(), COLOURS.iter().cycle());
    series.iter().filter_map(|s| if s.reference { greys.next() } else { others.next() }).copied().collect()
}

impl Chart for LineChart {
    fn draw<B: DrawingBackend>(&self, area: DrawingArea<B, Shift>, scale: u32) -> Drawn {
        self.on_its_axes().draw_whole(area, scale)
    }
}

impl LineChart {
    /// Without what has no place on a logarithmic axis: zeros, such as the error of an approximation of full rank.
    fn on_its_axes(&self) -> Self {
        let has_place = |x: f64, y: f64| !(self.log_x && x <= 0.0 || self.log_y && y <= 0.0);
        let mut chart = self.clone();
        for series in &mut chart.series {
            series.points.retain(|(x, y)| has_place(*x, *y));
            series.band.retain(|(x, low, _)| has_place(*x, *low));
        }
        chart
    }

    fn draw_whole<B: DrawingBackend>(&self, area: DrawingArea<B, Shift>, scale: u32) -> Drawn {
        let (x, mut y) = (self.x_range(), self.y_range());
        let (mut legend, hidden) = self.legend_position(&x, &y);
        if hidden > 0 {
            // No free place: one is made above the curves.
            let taller = y.start..if self.log_y { y.end * (y.end / y.start).powf(0.4) } else { y.end + 0.4 * (y.end - y.start) };
            let (place, still_hidden) = self.legend_position(&x, &taller);
            if still_hidden < hidden {
                (legend, y) = (place, taller);
            }
        }
        match (self.log_x, self.log_y) {
            (false, false) => self.draw_on(area, scale, legend, x, y),
            (true, false) => self.draw_on(area, scale, legend, LogAxis(x), y),
            (false, true) => self.draw_on(area, scale, legend, x, LogAxis(y)),
            (true, true) => self.draw_on(area, scale, legend, LogAxis(x), LogAxis(y)),
        }
    }

    fn x_range(&self) -> Range<f64> {
        Self::range(self.series.iter().flat_map(|s| s.points.iter().map(|p| p.0)), self.log_x, 0.0)
    }

    fn y_range(&self) -> Range<f64> {
        let of = |s: &Series| s.points.iter().map(|p| p.1).chain(s.band.iter().flat_map(|b| [b.1, b.2])).collect::<Vec<_>>();
        Self::range(self.series.iter().flat_map(of), self.log_y, 0.06)
    }

    fn range(values: impl Iterator<Item = f64>, log: bool, margin: f64) -> Range<f64> {
        let (low, high) = values.filter(|v| v.is_finite()).fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
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

    fn draw_on<B, X, Y>(&self, area: DrawingArea<B, Shift>, scale: u32, legend: SeriesLabelPosition, x: X, y: Y) -> Drawn
    where
        B: DrawingBackend,
        X: AsRangedCoord<Value = f64>,
        Y: AsRangedCoord<Value = f64>,
        X::CoordDescType: plotters::coord::ranged1d::ValueFormatter<f64>,
        Y::CoordDescType: plotters::coord::ranged1d::ValueFormatter<f64>,
    {
        area.fill(&WHITE).map_err(failed)?;
        let mut chart = frame(&area, &self.title, scale).build_cartesian_2d(x, y).map_err(failed)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(225, 225, 225))
            .x_desc(&self.x)
            .y_desc(&self.y)
            .axis_desc_style((FONT, 17 * scale))
            .label_style((FONT, 15 * scale))
            .x_label_formatter(&short)
            .y_label_formatter(&short)
            .draw()
            .map_err(failed)?;
        let colours = colours(&self.series);
        // Bands first: no curve lies behind one.
        for (series, colour) in self.series.iter().zip(&colours).filter(|(s, _)| s.band.len() > 1) {
            let (there, back) = (series.band.iter().map(|b| (b.0, b.1)), series.band.iter().rev().map(|b| (b.0, b.2)));
            chart.draw_series([Polygon::new(there.chain(back).collect::<Vec<_>>(), colour.mix(0.15))]).map_err(failed)?;
        }
        for (series, colour) in self.series.iter().zip(colours) {
            let stroke = colour.stroke_width(scale * if series.reference { 1 } else { 2 });
            let line = chart.draw_series(LineSeries::new(series.points.iter().copied(), stroke)).map_err(failed)?;
            let width = 22 * scale as i32;
            let line = line.label(legend_name(&series.name));
            if series.marked {
                let mark = move || Circle::new((width / 2, 0), 4 * scale, colour.filled());
                line.legend(move |at| EmptyElement::at(at) + PathElement::new([(0, 0), (width, 0)], stroke) + mark());
                chart.draw_series(series.points.iter().map(|p| Circle::new(*p, 4 * scale, colour.filled()))).map_err(failed)?;
            } else {
                line.legend(move |(x, y)| PathElement::new([(x, y), (x + width, y)], stroke));
            }
        }
        draw_legend(&mut chart, legend, scale)?;
        area.present().map_err(failed)
    }

    /// The place at the edge where the legend hides the least of the curves, and how many points of them it hides there.
    fn legend_position(&self, x: &Range<f64>, y: &Range<f64>) -> (SeriesLabelPosition, usize) {
        let share = |v: f64, range: &Range<f64>, log: bool| match log {
            true => (v / range.start).ln() / (range.end / range.start).ln(),
            false => (v - range.start) / (range.end - range.start),
        };
        let place = |p: &(f64, f64)| (share(p.0, x, self.log_x), share(p.1, y, self.log_y));
        // Points along the lines, not their ends alone.
        let mut along = Vec::new();
        for series in &self.series {
            // Ends of a band, and marks of what was not measured here; its lines may be hidden.
            along.extend(series.band.iter().flat_map(|b| [(b.0, b.1), (b.0, b.2)]).map(|p| place(&p)));
            if series.reference {
                along.extend(series.points.iter().filter(|_| series.marked).map(place));
                continue;
            }
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
        let [first, rest @ ..] = places.map(|(left, below, position)| (position, hidden(left, below)));
        rest.into_iter().fold(first, |best, other| if other.1 < best.1 { other } else { best })
    }
}

impl Chart for BarChart {
    fn draw<B: DrawingBackend>(&self, area: DrawingArea<B, Shift>, scale: u32) -> Drawn {
        area.fill(&WHITE).map_err(failed)?;
        let groups = self.groups.len().max(1) as f64;
        let mut chart = frame(&area, &self.title, scale)
            .build_cartesian_2d(GroupAxis(groups as usize), self.y_range.0..self.y_range.1)
            .map_err(failed)?;
        let name = |x: &f64| self.groups.get(x.floor() as usize).map(|(name, _)| name.clone()).unwrap_or_default();
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(225, 225, 225))
            .y_desc(&self.y)
            .axis_desc_style((FONT, 17 * scale))
            .label_style((FONT, 14 * scale))
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
            let (high, wide) = (6 * scale as i32, 16 * scale as i32);
            drawn.label(legend_name(series)).legend(move |(x, y)| Rectangle::new([(x, y - high), (x + wide, y + high)], colour.filled()));
            if let Some(baseline) = self.baselines.get(s).copied().flatten() {
                let line = PathElement::new([(0.0, baseline), (groups, baseline)], colour.stroke_width(scale));
                let drawn = chart.draw_series([line]).map_err(failed)?;
                drawn
                    .label(legend_name(&format!("{series}: majority class")))
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + wide, y)], colour.stroke_width(scale)));
            }
        }
        draw_legend(&mut chart, SeriesLabelPosition::UpperRight, scale)?;
        area.present().map_err(failed)
    }
}

/// Title and margins, alike in every chart.
pub(super) fn frame<'a, 'b, B: DrawingBackend>(area: &'a DrawingArea<B, Shift>, title: &str, scale: u32) -> ChartBuilder<'a, 'b, B> {
    let mut builder = ChartBuilder::on(area);
    builder.caption(title, (FONT, 22 * scale)).margin(14 * scale).x_label_area_size(46 * scale).y_label_area_size(72 * scale);
    builder
}

/// A name of a legend, with room behind it: a browser's own font may be wider than the one that its frame was measured with.
fn legend_name(name: &str) -> String {
    format!("{name}{}", "\u{a0}".repeat(2 + name.len() / 6))
}

fn draw_legend<'a, B, X, Y>(chart: &mut ChartContext<'a, B, Cartesian2d<X, Y>>, position: SeriesLabelPosition, scale: u32) -> Drawn
where
    B: DrawingBackend + 'a,
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .label_font((FONT, 15 * scale))
        .legend_area_size(30 * scale)
        .margin(10 * scale)
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

    fn range(&self) -> Range<f64> {
        0.0..self.0 as f64
    }
}

/// A logarithmic axis that is labelled at 1, 2 and 5 of each decade, or more closely where it is short.
struct LogAxis(Range<f64>);

impl LogAxis {
    fn labels(&self) -> Vec<f64> {
        let Range { start, end } = self.0;
        let decades = || (start.log10().floor() as i32)..=(end.log10().ceil() as i32);
        let at = |digits: &[f64]| -> Vec<f64> {
            let all = decades().flat_map(|decade| digits.iter().map(move |digit| digit * 10f64.powi(decade)));
            all.filter(|v| (start..=end).contains(v)).collect()
        };
        let sparse = at(&[1.0, 2.0, 5.0]);
        let decades = at(&[1.0]);
        let close = at(&[1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0]);
        match (decades.len(), sparse.len()) {
            (6.., _) => decades,
            (_, 3..) => sparse,
            _ => close,
        }
    }
}

impl Ranged for LogAxis {
    type FormatOption = plotters::coord::ranged1d::DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value / self.0.start).ln() / (self.0.end / self.0.start).ln();
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<H: KeyPointHint>(&self, _: H) -> Vec<f64> {
        self.labels()
    }

    fn range(&self) -> Range<f64> {
        self.0.clone()
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
        let series =
            |name: &str| Series { band: vec![(1.0, 18.0, 22.0), (10.0, 4.0, 6.0)], ..Series::marked(name, vec![(1.0, 20.0), (10.0, 5.0)]) };
        let chart = LineChart {
            title: "Title".into(),
            x: "tokens".into(),
            y: "perplexity".into(),
            log_x: true,
            log_y: true,
            series: vec![series("full")],
        };
        let svg = chart.render(&folder.path().join("a")).unwrap();
        assert!(svg.contains("perplexity") && svg.contains("full") && svg.contains("<polygon"), "{svg}");
        assert!(std::fs::metadata(folder.path().join("a.png")).unwrap().len() > 2000);
        // Zero is nowhere on a logarithmic axis.
        let with_zero = LineChart { series: vec![Series::marked("zero", vec![(1.0, 2.0), (2.0, 0.0)])], ..chart.clone() };
        with_zero.render(&folder.path().join("c")).unwrap();
        let empty = LineChart { series: Vec::new(), ..chart };
        empty.render(&folder.path().join("b")).unwrap();
    }

    #[test]
    fn a_logarithmic_axis_is_never_without_labels() {
        assert_eq!(LogAxis(90.0..2100.0).labels(), [100.0, 200.0, 500.0, 1000.0, 2000.0]);
        assert_eq!(LogAxis(126.0..227.0).labels(), [150.0, 200.0]);
        assert_eq!(LogAxis(0.1..2e6).labels().len(), 8);
        let axis = LogAxis(1.0..100.0);
        assert_eq!([1.0, 10.0, 100.0].map(|v| axis.map(&v, (0, 200))), [0, 100, 200]);
    }

    #[test]
    fn axis_numbers_are_short() {
        assert_eq!([0.05, 12.0, 3_500_000.0, 20_000.0].map(|v| short(&v)), ["0.05", "12", "3.5M", "20k"]);
    }
}
