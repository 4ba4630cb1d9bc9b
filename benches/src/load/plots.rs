//! SVG charts, to be put into the page. Black is replaced with the page's own text colour there.

use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;

pub use crate::eval::plots::{bits_colour, colour};

const SIZE: (u32, u32) = (720, 320);

pub struct Line {
    pub name: String,
    pub colour: RGBColor,
    /// x rising.
    pub points: Vec<(f64, f64)>,
}

/// What a chart shows.
pub struct Axes<'a> {
    pub x: &'a str,
    pub y: &'a str,
    pub x_label: fn(&f64) -> String,
    pub y_label: fn(&f64) -> String,
}

/// As many points as this are told apart as dots.
const MAX_DOTS: usize = 30;

/// Lines with a dot at each point if they are few, both axes from 0.
///
/// # Errors
/// None that depends on the data.
pub fn lines(axes: &Axes, lines: &[Line]) -> Result<String> {
    draw(axes, lines, |chart, line| {
        chart.draw_series(LineSeries::new(line.points.clone(), line.colour.stroke_width(2)))?;
        if line.points.len() > MAX_DOTS {
            return Ok(());
        }
        let dots = line.points.iter().map(|point| Circle::new(*point, 3, line.colour.filled()));
        chart.draw_series(dots)?;
        Ok(())
    })
}

/// Areas on top of each other, the first at the bottom. All have the same x.
///
/// # Errors
/// None that depends on the data.
pub fn stacked(axes: &Axes, areas: &[Line]) -> Result<String> {
    let mut floor: Vec<f64> = vec![0.0; areas.first().map_or(0, |area| area.points.len())];
    let mut bands = Vec::new();
    for area in areas {
        let under = area.points.iter().zip(&floor).map(|((x, _), y)| (*x, *y));
        let under: Vec<_> = under.collect();
        floor.iter_mut().zip(&area.points).for_each(|(floor, (_, y))| *floor += y);
        let over: Vec<_> = area.points.iter().zip(&floor).map(|((x, _), y)| (*x, *y)).collect();
        // Round the band: over it and back under it.
        let points = over.into_iter().chain(under.into_iter().rev()).collect();
        bands.push(Line { name: area.name.clone(), colour: area.colour, points });
    }
    draw(axes, &bands, |chart, band| {
        chart.draw_series([Polygon::new(band.points.clone(), band.colour.mix(0.8).filled())])?;
        Ok(())
    })
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<
    'a,
    SVGBackend<'b>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;

fn draw(
    axes: &Axes,
    lines: &[Line],
    series: impl Fn(&mut Chart, &Line) -> Result<()>,
) -> Result<String> {
    let points = || lines.iter().flat_map(|line| &line.points).filter(|(x, y)| (x * y).is_finite());
    let right = points().map(|(x, _)| *x).fold(0.0, f64::max);
    let top = points().map(|(_, y)| *y).fold(0.0, f64::max);
    if points().next().is_none() {
        return Ok(String::new());
    }
    let mut svg = String::new();
    {
        let root: Area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(10)
            .x_label_area_size(52)
            .y_label_area_size(80)
            .build_cartesian_2d(0.0..right.max(1e-9) * 1.03, 0.0..top.max(1e-9) * 1.05)?;
        chart
            .configure_mesh()
            .light_line_style(BLACK.mix(0.04))
            .bold_line_style(BLACK.mix(0.12))
            .x_labels(8)
            .y_labels(6)
            // Two charts stand side by side, drawn smaller.
            .label_style(("sans-serif", 16))
            .axis_desc_style(("sans-serif", 17))
            .x_desc(axes.x)
            .y_desc(axes.y)
            .x_label_formatter(&axes.x_label)
            .y_label_formatter(&axes.y_label)
            .draw()?;
        for line in lines {
            series(&mut chart, line)?;
        }
        root.present()?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axes() -> Axes<'static> {
        let label = |value: &f64| format!("{value:.1}");
        Axes { x: "seconds", y: "bytes", x_label: label, y_label: label }
    }

    fn line(points: Vec<(f64, f64)>) -> Line {
        Line { name: "a".into(), colour: colour(0), points }
    }

    #[test]
    fn a_line_has_a_dot_for_each_point_and_an_area_one_polygon() {
        let points = vec![(0.0, 1.0), (1.0, 2.0), (2.0, 0.5)];
        let svg = lines(&axes(), &[line(points.clone())]).unwrap();
        assert_eq!(svg.matches("<circle").count(), 3);
        let svg = stacked(&axes(), &[line(points.clone()), line(points)]).unwrap();
        assert_eq!(svg.matches("<polygon").count(), 2);
        assert!(!svg.contains("NaN"));
    }

    #[test]
    fn nothing_to_draw_is_an_empty_drawing() {
        assert_eq!(lines(&axes(), &[]).unwrap(), "");
        assert_eq!(stacked(&axes(), &[line(vec![])]).unwrap(), "");
    }
}
