//! `natter-chart`: draws what runs of `natter-load pairs` measured against the load they offered, beside the budget.
//! Reads lines of JSON from standard input, writes an SVG to standard output.
//!
//! Three panels, one below the other, over the same axis of offered messages a second: messages delivered, the
//! time within which 99 of 100 came, and the servers' CPU for 1,000 of them. Of runs at the same rate the median.

#![allow(clippy::cast_precision_loss, reason = "figures for people")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

const WIDTH: f64 = 760.0;
const PANEL_HEIGHT: f64 = 190.0;
const GAP: f64 = 58.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 130.0;
const TOP: f64 = 56.0;

/// One line each for clusters of so many nodes.
const COLORS: [&str; 4] = ["#1f6feb", "#d1570a", "#1a7f37", "#8250df"];

const BUDGET_COLOR: &str = "#c00";

/// A panel: what is drawn, and what it may be at most or must be at least.
struct Panel {
    title: &'static str,
    key: &'static str,
    /// From the unit of the key to that of the axis.
    scale: f64,
    budget: f64,
    budget_text: &'static str,
}

const PANELS: [Panel; 3] = [
    Panel {
        title: "delivered, thousand messages a second",
        key: "delivered_per_s",
        scale: 0.001,
        budget: 25.0,
        budget_text: "one node: 25 or more",
    },
    Panel {
        title: "99 of 100 delivered within, ms",
        key: "lat_p99_us",
        scale: 0.001,
        budget: 10.0,
        budget_text: "at 3,000/s: 10 or less",
    },
    Panel {
        title: "server CPU for 1,000 messages, s",
        key: "server_cpu_s_per_1000",
        scale: 1.0,
        budget: 0.05,
        budget_text: "at full load: 0.05 or less",
    },
];

/// Runs by number of nodes and offered rate.
type Runs = BTreeMap<u64, BTreeMap<u64, Vec<Value>>>;

fn main() -> Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let drawn = draw(&runs(&text)?);
    std::io::stdout().write_all(drawn.as_bytes())?;
    Ok(())
}

/// Runs of `pairs` at a rate; those at `max` offer what they deliver and have no place on the axis.
fn runs(text: &str) -> Result<Runs> {
    let mut runs = Runs::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let run: Value = serde_json::from_str(line)
            .with_context(|| format!("line {} is no JSON", number + 1))?;
        let rate = run["rate"].as_str().and_then(|rate| rate.parse().ok());
        if let (Some("pairs"), Some(nodes), Some(rate)) =
            (run["mode"].as_str(), run["nodes"].as_u64(), rate)
        {
            runs.entry(nodes).or_default().entry(rate).or_default().push(run);
        }
    }
    ensure!(!runs.is_empty(), "no run of `natter-load pairs ... --rate N` among the lines");
    Ok(runs)
}

fn median(runs: &[Value], panel: &Panel) -> Option<f64> {
    let mut values: Vec<f64> = runs.iter().filter_map(|run| run[panel.key].as_f64()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).map(|value| value * panel.scale)
}

/// A step that makes three to eight lines up to `most`: 1, 2 or 5 with zeros.
fn step(most: f64) -> f64 {
    let power = 10_f64.powf((most / 8.0).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|times| times * power);
    steps.into_iter().find(|step| most / step <= 8.0).unwrap_or(10.0 * power)
}

/// A number without zeros that say nothing.
fn figure(number: f64) -> String {
    let text = format!("{number:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn draw(runs: &Runs) -> String {
    let rates = runs.values().flat_map(BTreeMap::keys);
    let x_most = *rates.max().unwrap_or(&1) as f64;
    let height = TOP + PANELS.len() as f64 * (PANEL_HEIGHT + GAP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for (place, nodes) in runs.keys().enumerate() {
        let (x, color) = (LEFT + 130.0 * place as f64, COLORS[place % COLORS.len()]);
        let name = if *nodes == 1 { "one node".to_owned() } else { format!("{nodes} nodes") };
        push(
            &mut svg,
            format_args!("<path d=\"M{x} 22h24\" stroke=\"{color}\" stroke-width=\"2\"/>"),
        );
        push(&mut svg, format_args!("<text x=\"{}\" y=\"26\">{name}</text>", x + 30.0));
    }
    for (place, panel) in PANELS.iter().enumerate() {
        let top = TOP + place as f64 * (PANEL_HEIGHT + GAP);
        draw_panel(&mut svg, panel, runs, (top, x_most));
    }
    svg.push_str("</svg>\n");
    svg
}

/// Where a value of the two axes lies on the page.
struct Axes {
    top: f64,
    bottom: f64,
    x_most: f64,
    y_most: f64,
}

impl Axes {
    fn x(&self, rate: f64) -> f64 {
        LEFT + rate / self.x_most * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        self.bottom - value / self.y_most * PANEL_HEIGHT
    }

    /// Lines and numbers; the last panel names the axis.
    fn draw(&self, svg: &mut String, y_step: f64, is_last: bool) {
        let (left, right) = (self.x(0.0), self.x(self.x_most));
        for line in 0..=lines(self.y_most, y_step) {
            let value = f64::from(line) * y_step;
            let y = self.y(value);
            push(svg, format_args!("<path d=\"M{left} {y:.1}H{right}\" stroke=\"#ddd\"/>"));
            write_at(svg, "end", (left - 8.0, y + 4.0), &figure(value));
        }
        let x_step = step(self.x_most);
        for line in 0..=lines(self.x_most, x_step) {
            let value = f64::from(line) * x_step;
            write_at(svg, "middle", (self.x(value), self.bottom + 18.0), &figure(value));
        }
        if is_last {
            let place = (self.x(self.x_most / 2.0), self.bottom + 38.0);
            write_at(svg, "middle", place, "offered, messages a second");
        }
    }
}

fn draw_panel(svg: &mut String, panel: &Panel, runs: &Runs, (top, x_most): (f64, f64)) {
    let points = |rates: &BTreeMap<u64, Vec<Value>>| -> Vec<(f64, f64)> {
        let point = |(rate, runs): (&u64, &Vec<Value>)| Some((*rate as f64, median(runs, panel)?));
        rates.iter().filter_map(point).collect()
    };
    let curves: Vec<Vec<(f64, f64)>> = runs.values().map(points).collect();
    let highest = curves.iter().flatten().map(|point| point.1).fold(panel.budget, f64::max);
    let y_step = step(highest * 1.05);
    let y_most = (highest * 1.05 / y_step).ceil() * y_step;
    let axes = Axes { top, bottom: top + PANEL_HEIGHT, x_most, y_most };
    push(
        svg,
        format_args!(
            "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{}</text>",
            axes.top - 8.0,
            panel.title
        ),
    );
    axes.draw(svg, y_step, panel.key == PANELS[PANELS.len() - 1].key);
    let (y, right) = (axes.y(panel.budget), axes.x(x_most));
    push(
        svg,
        format_args!(
            "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"{BUDGET_COLOR}\" stroke-dasharray=\"6 4\"/>"
        ),
    );
    push(
        svg,
        format_args!(
            "<text x=\"{}\" y=\"{:.1}\" fill=\"{BUDGET_COLOR}\" font-size=\"10\">{}</text>",
            right + 6.0,
            y + 3.0,
            panel.budget_text
        ),
    );
    for (curve, color) in curves.iter().zip(COLORS.iter().cycle()) {
        draw_curve(svg, &axes, curve, color);
    }
}

fn draw_curve(svg: &mut String, axes: &Axes, curve: &[(f64, f64)], color: &str) {
    let at = |(x, y): &(f64, f64)| format!("{:.1} {:.1}", axes.x(*x), axes.y(*y));
    let path = curve.iter().map(at).collect::<Vec<_>>().join("L");
    push(
        svg,
        format_args!("<path d=\"M{path}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>"),
    );
    for (x, y) in curve {
        let (x, y) = (axes.x(*x), axes.y(*y));
        push(svg, format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"/>"));
    }
}

fn write_at(svg: &mut String, anchor: &str, (x, y): (f64, f64), text: &str) {
    push(
        svg,
        format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"),
    );
}

#[allow(clippy::cast_possible_truncation, reason = "eight at most")]
fn lines(most: f64, step: f64) -> i32 {
    (most / step + 1e-9).floor() as i32
}

fn push(svg: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    writeln!(svg, "{line}").ok();
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn runs_are_drawn_by_their_median_and_what_is_no_run_at_a_rate_is_left_out() {
        let run = |nodes, rate: &str, p99: f64| {
            format!(
                "{{\"mode\":\"pairs\",\"nodes\":{nodes},\"rate\":\"{rate}\",\"delivered_per_s\":{},\
                 \"lat_p99_us\":{p99},\"server_cpu_s_per_1000\":0.1}}\n",
                if rate == "max" { "9" } else { rate }
            )
        };
        let text = [run(1, "1000", 900.0), run(1, "1000", 1.0), run(1, "1000", 2000.0)].concat()
            + &run(1, "4000", 3000.0)
            + &run(3, "1000", 8000.0)
            + &run(1, "max", 1.0)
            + "{\"mode\":\"idle\"}\n";
        let runs = runs(&text).unwrap();
        assert_eq!(runs[&1].keys().copied().collect::<Vec<_>>(), [1000, 4000]);
        assert_eq!(median(&runs[&1][&1000], &PANELS[1]), Some(0.9));
        let svg = draw(&runs);
        assert_eq!(svg.matches("<circle").count(), 3 * PANELS.len());
        assert!(svg.contains("one node") && svg.contains("3 nodes"));
        assert!(super::runs("{\"mode\":\"idle\"}").is_err() && super::runs("no").is_err());
    }

    #[test]
    fn an_axis_has_few_round_lines() {
        for (most, expected) in [(40_000.0, 5_000.0), (26.0, 5.0), (0.05, 0.01), (8.0, 1.0)] {
            assert!((step(most) - expected).abs() < expected * 1e-6, "{most}: {}", step(most));
        }
    }
}
