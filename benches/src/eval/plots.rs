//! SVG drawings, to be put into the page. Black is replaced with the page's own text colour there.

use anyhow::Result;
use plotters::prelude::*;

/// One line: (x, y, low, high), x rising.
pub struct Series {
    pub colour: RGBColor,
    pub is_dashed: bool,
    pub points: Vec<[f64; 4]>,
}

/// Colours that can be told apart on light and on dark ground.
pub fn colour(index: usize) -> RGBColor {
    // Hues at golden-ratio steps: any number of neighbours differ.
    let hue = (0.58 + index as f64 * 0.618_034).fract();
    let lightness = [0.5, 0.62, 0.4][index / 7 % 3];
    let (r, g, b) = HSLColor(hue, 0.7, lightness).rgb();
    RGBColor(r, g, b)
}

/// What the y axis shows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    Score,
    /// Logarithmic, from this value on.
    Divergence,
}

/// Divergences below are drawn here: the exact cache has none at all.
const LEAST: f64 = 1e-6;

impl Scale {
    fn place(self, y: f64) -> f64 {
        if self == Self::Score { y } else { y.max(LEAST).log10() }
    }

    fn label(self, y: f64) -> String {
        if self == Self::Score { format!("{y:.2}") } else { format!("{:.0e}", 10f64.powf(y)) }
    }
}

/// Quality against bytes, with a band from `low` to `high` around each line.
///
/// # Errors
/// None that depends on the data.
pub fn quality(series: &[Series], scale: Scale, title: &str) -> Result<String> {
    let points = || series.iter().flat_map(|s| &s.points);
    let (mut left, mut right) = (f64::INFINITY, f64::NEG_INFINITY);
    let (mut bottom, mut top) = (f64::INFINITY, f64::NEG_INFINITY);
    for [x, y, low, high] in points() {
        (left, right) = (left.min(x.log2()), right.max(x.log2()));
        for y in [y, low, high] {
            (bottom, top) = (bottom.min(scale.place(*y)), top.max(scale.place(*y)));
        }
    }
    if !(left.is_finite() && bottom.is_finite()) {
        return Ok(String::new());
    }
    let margin = 0.05 * (top - bottom).max(0.1);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (860, 460)).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(64)
            .build_cartesian_2d(left - 0.1..right + 0.1, bottom - margin..top + margin)?;
        chart
            .configure_mesh()
            .light_line_style(BLACK.mix(0.06))
            .bold_line_style(BLACK.mix(0.14))
            .x_labels(10)
            .x_desc("share of the F16 bytes")
            .y_desc(title)
            .x_label_formatter(&|x| format!("{:.3}", x.exp2()))
            .y_label_formatter(&|y| scale.label(*y))
            .draw()?;
        for Series { colour, is_dashed, points } in series {
            let at = |p: &[f64; 4], y: usize| (p[0].log2(), scale.place(p[y]));
            let band: Vec<_> = points
                .iter()
                .map(|p| at(p, 3))
                .chain(points.iter().rev().map(|p| at(p, 2)))
                .collect();
            chart.draw_series([Polygon::new(band, colour.mix(0.14).filled())])?;
            let line = points.iter().map(|p| at(p, 1));
            if *is_dashed {
                chart.draw_series(DashedLineSeries::new(
                    line.clone(),
                    5,
                    4,
                    colour.stroke_width(1),
                ))?;
            } else {
                chart.draw_series(LineSeries::new(line.clone(), colour.stroke_width(3)))?;
            }
            let bars = points.iter().map(|p| PathElement::new([at(p, 2), at(p, 3)], *colour));
            chart.draw_series(bars)?;
            chart.draw_series(line.map(|point| Circle::new(point, 3, colour.filled())))?;
        }
        root.present()?;
    }
    Ok(svg)
}

/// Bits from 0 to 16 as a colour: most of the range for the few bits that tell tiers apart.
pub fn bits_colour(bits: f64) -> RGBColor {
    let share = 0.85 * (bits / 8.0).clamp(0.0, 1.0) + 0.15 * ((bits - 8.0) / 8.0).clamp(0.0, 1.0);
    let (r, g, b) = HSLColor(0.75 - 0.62 * share, 0.75, 0.35 + 0.2 * share).rgb();
    RGBColor(r, g, b)
}

/// Shares from 0 to 1 from red to green.
pub fn share_colour(share: f64) -> RGBColor {
    let (r, g, b) = HSLColor(0.36 * share.clamp(0.0, 1.0), 0.7, 0.42).rgb();
    RGBColor(r, g, b)
}

/// A map of coloured cells.
#[derive(Clone, Debug, Default)]
pub struct Grid {
    /// What columns and rows are.
    pub axes: [&'static str; 2],
    pub columns: Vec<String>,
    /// From the bottom up.
    pub rows: Vec<String>,
    /// `[column][row]`.
    pub cells: Vec<Vec<f64>>,
}

impl Grid {
    /// Empty without cells.
    ///
    /// # Errors
    /// None that depends on the data.
    pub fn draw(&self, colour: fn(f64) -> RGBColor) -> Result<String> {
        let (columns, rows) = (self.columns.len(), self.rows.len());
        if columns == 0 || rows == 0 {
            return Ok(String::new());
        }
        let mut svg = String::new();
        {
            let size = (120 + 18 * columns as u32, 48 + 18 * rows as u32);
            let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
            let mut chart = ChartBuilder::on(&root)
                .margin(4)
                .x_label_area_size(34)
                .y_label_area_size(52)
                .build_cartesian_2d(
                    (0..columns as i32).into_segmented(),
                    (0..rows as i32).into_segmented(),
                )?;
            chart
                .configure_mesh()
                .disable_mesh()
                .x_desc(self.axes[0])
                .y_desc(self.axes[1])
                .x_labels(columns)
                .y_labels(rows)
                .x_label_formatter(&|x| label(&self.columns, x))
                .y_label_formatter(&|y| label(&self.rows, y))
                .draw()?;
            let cells = self.cells.iter().zip(0..).flat_map(|(rows, x)| {
                rows.iter().zip(0..).map(move |(value, y)| {
                    let corner = |x, y| (SegmentValue::Exact(x), SegmentValue::Exact(y));
                    let corners = [corner(x, y), corner(x + 1, y + 1)];
                    Rectangle::new(corners, colour(*value).filled())
                })
            });
            chart.draw_series(cells)?;
            root.present()?;
        }
        Ok(svg)
    }
}

fn label(labels: &[String], at: &SegmentValue<i32>) -> String {
    match at {
        SegmentValue::CenterOf(index) => labels.get(*index as usize).cloned().unwrap_or_default(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_has_a_line_and_a_band_for_each_series() {
        let series = |index| Series {
            colour: colour(index),
            is_dashed: index > 0,
            points: vec![[0.1, 0.02, 0.01, 0.03], [0.3, 0.001, 0.0, 0.002]],
        };
        let svg = quality(&[series(0), series(1)], Scale::Divergence, "divergence").unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert_eq!(svg.matches("<polygon").count(), 2);
        assert_eq!(svg.matches("<circle").count(), 4);
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn nothing_to_draw_is_an_empty_drawing() {
        assert_eq!(quality(&[], Scale::Score, "score").unwrap(), "");
        assert_eq!(Grid::default().draw(share_colour).unwrap(), "");
    }

    #[test]
    fn a_grid_has_its_labels_and_a_cell_for_each_value() {
        let grid = Grid {
            axes: ["length", "depth"],
            columns: vec!["1000".into(), "2000".into()],
            rows: ["75 %", "50 %", "25 %"].map(String::from).to_vec(),
            cells: vec![vec![0.0, 1.0, 0.5]; 2],
        };
        let svg = grid.draw(share_colour).unwrap();
        assert_eq!(svg.matches("<rect").count(), 6);
        for label in ["length", "depth", "1000", "2000", "75 %", "50 %", "25 %"] {
            assert!(svg.contains(label), "{label}");
        }
    }
}
