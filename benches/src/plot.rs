//! Line plots with logarithmic axes, as SVG.

use std::fmt::Write;

/// One line.
pub struct Series {
    /// What it is called.
    pub name: String,
    /// Its points, by x.
    pub points: Vec<(f64, f64)>,
}

/// One pair of axes.
pub struct Plot {
    /// What y is.
    pub title: String,
    /// The lines.
    pub series: Vec<Series>,
}

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 300.0;
/// Room for the numbers at the axes and for names.
const MARGIN: f64 = 50.0;
/// Distinguishable also for most people who see few colours.
const COLOURS: &[&str] = &["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"];

/// A logarithmic axis from one number to another, between two places.
struct Axis {
    from: f64,
    to: f64,
    begin: f64,
    end: f64,
}

impl Axis {
    /// That has room for these numbers: from one power of ten to another.
    fn around(numbers: impl Iterator<Item = f64>, begin: f64, end: f64) -> Axis {
        let logs: Vec<f64> = numbers.filter(|number| *number > 0.0).map(f64::log10).collect();
        let from = logs.iter().copied().fold(f64::INFINITY, f64::min).floor();
        let to = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max).ceil();
        if logs.is_empty() {
            return Axis { from: 0.0, to: 1.0, begin, end };
        }
        Axis { from, to: to.max(from + 1.0), begin, end }
    }

    fn place(&self, number: f64) -> f64 {
        let part = (number.max(f64::MIN_POSITIVE).log10().max(self.from) - self.from) / (self.to - self.from);
        self.begin + part * (self.end - self.begin)
    }

    /// The powers of ten.
    fn marks(&self) -> impl Iterator<Item = f64> + use<> {
        let (from, to) = (self.from as i32, self.to as i32);
        (from..=to).map(|power| 10_f64.powi(power))
    }
}

/// The plots beside each other.
pub fn svg(plots: &[Plot], x_title: &str) -> String {
    let width = (WIDTH + MARGIN) * plots.len() as f64 + MARGIN;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {}\" font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        HEIGHT + 2.0 * MARGIN
    );
    for (number, plot) in plots.iter().enumerate() {
        draw(&mut text, plot, x_title, MARGIN + number as f64 * (WIDTH + MARGIN));
    }
    text.push_str("</svg>\n");
    text
}

fn draw(text: &mut String, plot: &Plot, x_title: &str, left: f64) {
    let (top, bottom, right) = (MARGIN, MARGIN + HEIGHT, left + WIDTH - MARGIN);
    let all = || plot.series.iter().flat_map(|series| series.points.iter().copied());
    let x = Axis::around(all().map(|(x, _)| x), left, right);
    let y = Axis::around(all().map(|(_, y)| y), bottom, top);
    // Writing to a string does not fail.
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        let _ = text.write_fmt(arguments);
    };
    line(format_args!("<text x=\"{left}\" y=\"{}\" font-size=\"13\">{}</text>\n", top - 20.0, plot.title));
    for mark in x.marks() {
        let place = x.place(mark);
        line(format_args!("<path d=\"M{place:.1} {top}V{bottom}\" stroke=\"#ddd\"/>"));
        line(format_args!(
            "<text x=\"{place:.1}\" y=\"{}\" text-anchor=\"middle\">{mark}</text>\n",
            bottom + 15.0
        ));
    }
    for mark in y.marks() {
        let place = y.place(mark);
        line(format_args!("<path d=\"M{left} {place:.1}H{right}\" stroke=\"#ddd\"/>"));
        line(format_args!(
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{mark}</text>\n",
            left - 5.0,
            place + 4.0
        ));
    }
    line(format_args!(
        "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{x_title}</text>\n",
        f64::midpoint(left, right),
        bottom + 32.0
    ));
    for (number, series) in plot.series.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let places: Vec<String> =
            series.points.iter().map(|&(a, b)| format!("{:.1},{:.1}", x.place(a), y.place(b))).collect();
        line(format_args!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n",
            places.join(" ")
        ));
        let legend = top + 15.0 * number as f64;
        line(format_args!(
            "<text x=\"{}\" y=\"{legend}\" fill=\"{colour}\">{}</text>\n",
            left + 10.0,
            series.name
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_room_for_all_numbers() {
        let axis = Axis::around([1.0, 300.0].into_iter(), 0.0, 300.0);
        assert_eq!(axis.marks().collect::<Vec<_>>(), [1.0, 10.0, 100.0, 1000.0]);
        assert_eq!((axis.place(1.0), axis.place(100.0)), (0.0, 200.0));
        // Nothing has no logarithm: it is at the edge.
        assert_eq!(axis.place(0.0), 0.0);
        assert_eq!(Axis::around([5.0].into_iter(), 0.0, 1.0).marks().count(), 2);
        assert_eq!(Axis::around(std::iter::empty(), 0.0, 1.0).marks().count(), 2);
    }

    #[test]
    fn a_picture_has_a_line_for_each_series() {
        let series = |name: &str| Series { name: name.to_owned(), points: vec![(1.0, 10.0), (100.0, 20.0)] };
        let plot = Plot { title: "memory".to_owned(), series: vec![series("a"), series("b")] };
        let text = svg(&[plot], "VEs");
        assert_eq!(text.matches("<polyline").count(), 2);
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }
}
