//! The run as a page to look at: a plot for each figure, every round a dot, the median a bar.

use std::fmt::Write as _;

use anyhow::{Result, anyhow};
use plotters::prelude::{
    BLACK, ChartBuilder, Circle, Color, IntoDrawingArea, IntoSegmentedCoord, RGBColor, Rectangle, SVGBackend,
    SegmentValue, WHITE,
};

use super::{record::Run, trials::Metric};

/// The daemon of this project.
const OURS: RGBColor = RGBColor(0x1f, 0x77, 0xb4);
/// The others.
const THEIRS: RGBColor = RGBColor(0x9a, 0x9a, 0x9a);
/// Height of a system's bar and of what is around all of them, in pixels.
const ROW: u32 = 24;
const FRAME: u32 = 70;
const WIDTH: u32 = 760;

/// The whole page, in one file.
pub fn html(run: &Run) -> Result<String> {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>edge: bench of {began}</title>\n\
         <style>body{{font-family:sans-serif;max-width:{WIDTH}px;margin:2em auto}}h2{{margin-top:2em}}</style>\
         </head><body>\n<h1>Bench of {began}</h1>\n<p>{machine}; commit {commit}; {rounds} rounds. A bar is the \
         median, a dot a round.</p>\n",
        began = escape(&run.began),
        machine = escape(&run.machine.describe()),
        commit = escape(&run.machine.commit),
        rounds = run.rounds,
    );
    for trial in &run.trials {
        writeln!(page, "<h2>{}</h2>", escape(trial))?;
        for metric in run.metrics(trial) {
            if let Some(plot) = plot(run, trial, metric)? {
                page.push_str(&plot);
            }
        }
    }
    page.push_str("</body></html>\n");
    Ok(page)
}

/// A bar chart; `None` where there is nothing but zeros.
fn plot(run: &Run, trial: &str, metric: Metric) -> Result<Option<String>> {
    let bars: Vec<_> = run
        .systems
        .iter()
        .filter_map(|system| Some((&*system.name, run.summary(&system.name, trial, metric)?)))
        .collect();
    let most = bars.iter().map(|(_, summary)| summary.most).fold(0.0, f64::max);
    if most <= 0.0 {
        return Ok(None);
    }
    let mut svg = String::new();
    let height = u32::try_from(bars.len())? * ROW + FRAME;
    draw(&mut svg, height, run, trial, metric, &bars, most)
        .map_err(|error| anyhow!("drawing {trial}: {error}"))?;
    Ok(Some(svg))
}

fn draw(
    svg: &mut String,
    height: u32,
    run: &Run,
    trial: &str,
    metric: Metric,
    bars: &[(&str, super::summary::Summary)],
    most: f64,
) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(svg, (WIDTH, height)).into_drawing_area();
    area.fill(&WHITE)?;
    // The first system on top.
    let names: Vec<&str> = bars.iter().rev().map(|(name, _)| *name).collect();
    let mut chart = ChartBuilder::on(&area)
        .caption(format!("{} ({})", metric.label(), metric.unit()), ("sans-serif", 15))
        .margin(4)
        .x_label_area_size(24)
        .y_label_area_size(150)
        .build_cartesian_2d(0.0..most * 1.05, (0..names.len()).into_segmented())?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(names.len() + 1)
        .y_label_formatter(&|segment| match segment {
            SegmentValue::CenterOf(index) => names.get(*index).unwrap_or(&"").to_string(),
            _ => String::new(),
        })
        .draw()?;
    for (index, name) in names.iter().enumerate() {
        let Some((_, summary)) = bars.iter().find(|(other, _)| other == name) else { continue };
        let colour = if name.starts_with("edged") { OURS } else { THEIRS };
        let mut bar = Rectangle::new(
            [(0.0, SegmentValue::Exact(index)), (summary.median, SegmentValue::Exact(index + 1))],
            colour.mix(0.6).filled(),
        );
        bar.set_margin(4, 4, 0, 0);
        chart.draw_series([bar])?;
        let dots = run.values(name, trial, metric);
        chart.draw_series(
            dots.iter()
                .map(|(_, value)| Circle::new((*value, SegmentValue::CenterOf(index)), 2, BLACK.filled())),
        )?;
    }
    drop(chart);
    area.present()?;
    drop(area);
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
