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

/// `bits[layer][kv_head]`: a column per layer, a row per head.
///
/// # Errors
/// None that depends on the data.
pub fn bit_map(bits: &[Vec<f64>]) -> Result<String> {
    let (columns, rows) = (bits.len(), bits.first().map_or(0, Vec::len));
    if columns == 0 || rows == 0 {
        return Ok(String::new());
    }
    let mut svg = String::new();
    {
        let size = (80 + 18 * columns as u32, 48 + 18 * rows as u32);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(4)
            .x_label_area_size(34)
            .y_label_area_size(48)
            .build_cartesian_2d(0..columns as i32, 0..rows as i32)?;
        chart
            .configure_mesh()
            .disable_mesh()
            .x_desc("layer")
            .y_desc("head")
            .y_labels(rows)
            .draw()?;
        let cells = bits.iter().enumerate().flat_map(|(layer, heads)| {
            heads.iter().enumerate().map(move |(head, bits)| {
                let (x, y) = (layer as i32, head as i32);
                Rectangle::new([(x, y), (x + 1, y + 1)], bits_colour(*bits).filled())
            })
        });
        chart.draw_series(cells)?;
        root.present()?;
    }
    Ok(svg)
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
        assert_eq!(bit_map(&[]).unwrap(), "");
    }

    #[test]
    fn a_bit_map_has_a_cell_for_each_head() {
        let svg = bit_map(&vec![vec![4.0, 8.0, 0.0]; 5]).unwrap();
        assert_eq!(svg.matches("<rect").count(), 15);
    }
}
