//! Line charts as SVG, by hand: the same figures give the same file.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;

const COLOURS: [&str; 8] = ["#0b7285", "#868e96", "#f08c00", "#9c36b5", "#2b8a3e", "#c92a2a", "#1864ab", "#5f3dc4"];
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
const LEGEND_LINE: f64 = 16.0;
/// Marks on an axis, about.
const TICKS: f64 = 5.0;

#[derive(Debug, Default)]
pub struct Chart {
    pub title: String,
    pub x: String,
    pub y: String,
    pub series: Vec<Series>,
    /// Show single points, where a line has few of them.
    pub has_marks: bool,
}

#[derive(Debug, Default)]
pub struct Series {
    pub name: String,
    /// In the order in which they are joined.
    pub points: Vec<(f64, f64)>,
}

/// 1, 2 or 5 times a power of ten: what makes about [`TICKS`] marks up to `most`.
fn step(most: f64) -> f64 {
    let power = 10f64.powf((most / TICKS).log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| most / step <= TICKS + 1.0).unwrap_or(power * 10.0)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// From values to places on the picture.
struct Scale {
    x_max: f64,
    y_max: f64,
}

impl Scale {
    fn x(&self, value: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * value / self.x_max
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / self.y_max
    }
}

/// The round values that an axis marks.
fn marks(most: f64) -> impl Iterator<Item = f64> {
    let step = step(most);
    (0..=(most / step) as usize).map(move |i| i as f64 * step)
}

impl Chart {
    pub fn to_svg(&self) -> String {
        let most = |of: fn(&(f64, f64)) -> f64| {
            let values = self.series.iter().flat_map(|series| &series.points).map(of);
            values.filter(|v| v.is_finite()).fold(0.0, f64::max).max(1e-9)
        };
        let scale = Scale { x_max: most(|p| p.0), y_max: most(|p| p.1) };
        let height = HEIGHT + LEGEND_LINE * self.series.len() as f64;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"22\" font-size=\"14\">{}</text>\n",
            escaped(&self.title)
        );
        self.write_axes(&mut svg, &scale);
        for (i, series) in self.series.iter().enumerate() {
            self.write_series(&mut svg, &scale, i, series);
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn write_axes(&self, svg: &mut String, scale: &Scale) {
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        for value in marks(scale.x_max) {
            let (x, below) = (scale.x(value), bottom + 16.0);
            let _ = writeln!(
                svg,
                "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"#e9ecef\"/>\
                 <text x=\"{x:.1}\" y=\"{below}\" text-anchor=\"middle\">{}</text>",
                short(value)
            );
        }
        for value in marks(scale.y_max) {
            let (y, before, line) = (scale.y(value), LEFT - 6.0, scale.y(value) + 4.0);
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#e9ecef\"/>\
                 <text x=\"{before}\" y=\"{line:.1}\" text-anchor=\"end\">{}</text>",
                short(value)
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\
             <text transform=\"translate(16 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            (LEFT + right) / 2.0,
            bottom + 36.0,
            escaped(&self.x),
            (TOP + bottom) / 2.0,
            escaped(&self.y)
        );
    }

    fn write_series(&self, svg: &mut String, scale: &Scale, number: usize, series: &Series) {
        let colour = COLOURS[number % COLOURS.len()];
        let places: Vec<(f64, f64)> = series.points.iter().map(|&(x, y)| (scale.x(x), scale.y(y))).collect();
        let line: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let line = line.join(" ");
        let _ = writeln!(svg, "<polyline points=\"{line}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>");
        for (x, y) in places.iter().filter(|_| self.has_marks) {
            let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
        }
        let y = HEIGHT + LEGEND_LINE * number as f64;
        let _ = writeln!(
            svg,
            "<rect x=\"{LEFT}\" y=\"{}\" width=\"10\" height=\"10\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"{y}\">{}</text>",
            y - 9.0,
            LEFT + 16.0,
            escaped(&series.name)
        );
    }
}

/// At most one digit after the point, unless the value is small.
fn short(value: f64) -> String {
    let text = if value.abs() < 1.0 { format!("{value:.2}") } else { format!("{value:.1}") };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
}

/// A figure of a summary.
type Figure = fn(&Value) -> &Value;

/// The charts of some runs, by file name: distributions of each, and what depends on the rate or the users.
pub fn charts(title: &str, summaries: &[Value]) -> BTreeMap<&'static str, Chart> {
    let mut charts = BTreeMap::new();
    for (file, name, what) in
        [("ttft-cdf.svg", "ttft_ms", "time to first token"), ("tpot-cdf.svg", "tpot_ms", "time of one more token")]
    {
        let series = summaries.iter().map(|summary| Series {
            name: format!("{}, {}", label(summary), load(summary).0),
            points: distribution(&summary["cdf"][name]),
        });
        let chart = Chart {
            title: format!("{title}: {what}"),
            x: "ms".into(),
            y: "% of requests".into(),
            series: series.filter(|series| !series.points.is_empty()).collect(),
            has_marks: false,
        };
        charts.insert(file, chart);
    }
    let figures: [(&str, &str, Figure); 3] = [
        ("throughput.svg", "output tokens/s", |s| &s["output_tokens_per_s"]),
        ("ttft-p95.svg", "TTFT p95, ms", |s| &s["ttft_ms"]["p95"]),
        ("goodput.svg", "goodput, requests/s", |s| &s["goodput"]["requests_per_s"]),
    ];
    for (file, y, figure) in figures {
        let mut lines: BTreeMap<(&str, String), Vec<(f64, f64)>> = BTreeMap::new();
        for summary in summaries {
            let (_, x, amount) = load(summary);
            if let Some(value) = figure(summary).as_f64() {
                lines.entry((x, label(summary))).or_default().push((amount, value));
            }
        }
        let x = if lines.keys().any(|(x, _)| *x == "requests/s") { "requests/s" } else { "users" };
        let mut series: Vec<Series> = Vec::new();
        for ((_, name), mut points) in lines.into_iter().filter(|((kind, _), _)| *kind == x) {
            points.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
            series.push(Series { name, points });
        }
        let chart = Chart { title: format!("{title}: {y}"), x: x.into(), y: y.into(), series, has_marks: true };
        charts.insert(file, chart);
    }
    charts
}

fn label(summary: &Value) -> String {
    summary["label"].as_str().unwrap_or("run").to_string()
}

/// How a run was loaded: in words, its unit, the amount.
fn load(summary: &Value) -> (String, &'static str, f64) {
    let arrivals = &summary["arrivals"];
    match arrivals["open"]["requests_per_s"].as_f64() {
        Some(rate) => (format!("{rate} requests/s"), "requests/s", rate),
        None => {
            let users = arrivals["closed"]["users"].as_f64().unwrap_or(0.0);
            (format!("{users} users"), "users", users)
        }
    }
}

fn distribution(values: &Value) -> Vec<(f64, f64)> {
    let values: Vec<f64> = values.as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    let last = values.len().saturating_sub(1).max(1) as f64;
    values.iter().enumerate().map(|(i, &value)| (value, 100.0 * i as f64 / last)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn marks_are_round() {
        let check = |most: f64, expected: f64| assert!((step(most) / expected - 1.0).abs() < 1e-9, "{most}");
        check(1.0, 0.2);
        check(5.0, 1.0);
        check(100.0, 20.0);
        check(130.0, 50.0);
        check(0.07, 0.02);
    }

    #[test]
    fn runs_become_lines() {
        let run = |label: &str, rate: f64| {
            json!({"label": label, "arrivals": {"open": {"requests_per_s": rate}}, "output_tokens_per_s": 10.0 * rate,
                   "ttft_ms": {"p95": 5.0}, "goodput": {"requests_per_s": rate},
                   "cdf": {"ttft_ms": [1.0, 2.0, 4.0], "tpot_ms": []}})
        };
        let charts = charts("policy <8k>", &[run("one", 2.0), run("other", 1.0), run("one", 1.0)]);
        let throughput = &charts["throughput.svg"];
        assert_eq!(throughput.series.len(), 2);
        assert_eq!(throughput.series[0].points, [(1.0, 10.0), (2.0, 20.0)]);
        assert_eq!(charts["ttft-cdf.svg"].series[0].points, [(1.0, 0.0), (2.0, 50.0), (4.0, 100.0)]);
        assert!(charts["tpot-cdf.svg"].series.is_empty());
        let svg = throughput.to_svg();
        assert!(svg.contains("policy &lt;8k&gt;") && svg.matches("<polyline").count() == 2, "{svg}");
        assert!(Chart::default().to_svg().ends_with("</svg>\n"), "a chart of nothing is a chart");
    }
}
