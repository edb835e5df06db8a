//! What a monitoring system watches: numbers with names, and their text for Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// The media type of [`exposition`].
pub const EXPOSITION_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How a number moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetricKind {
    /// Up only, from 0 at the start of what counts.
    Counter,
    /// Up and down.
    Gauge,
}

/// A thing that is measured, with everything it is measured of.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Metric {
    /// By Prometheus' rules: the unit at its end, and `_total` for a counter.
    pub name: String,
    /// What it is; one line.
    pub help: String,
    /// How it moves.
    pub kind: MetricKind,
    /// The numbers.
    pub samples: Vec<Sample>,
}

/// A number of a [`Metric`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// What it is of.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The number.
    pub value: f64,
}

impl Metric {
    /// One without numbers.
    pub fn new(kind: MetricKind, name: &str, help: &str) -> Metric {
        Metric { name: name.to_owned(), help: help.to_owned(), kind, samples: Vec::new() }
    }

    /// With one more number.
    #[must_use]
    pub fn with(mut self, labels: &[(&str, &str)], value: f64) -> Metric {
        self.add(labels, value);
        self
    }

    /// Adds a number.
    pub fn add(&mut self, labels: &[(&str, &str)], value: f64) {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.samples.push(Sample { labels, value });
    }
}

/// The text form that Prometheus reads, version 0.0.4
/// (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
pub fn exposition(metrics: &[Metric]) -> String {
    let mut text = String::new();
    for metric in metrics {
        let kind = match metric.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# HELP {} {}", metric.name, escaped(&metric.help, false));
        let _ = writeln!(text, "# TYPE {} {kind}", metric.name);
        for sample in &metric.samples {
            text.push_str(&metric.name);
            let labels = sample.labels.iter();
            let labels: Vec<_> =
                labels.map(|(name, value)| format!("{name}=\"{}\"", escaped(value, true))).collect();
            if !labels.is_empty() {
                let _ = write!(text, "{{{}}}", labels.join(","));
            }
            let _ = writeln!(text, " {}", sample.value);
        }
    }
    text
}

fn escaped(text: &str, is_label: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '"' if is_label => escaped.push_str("\\\""),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_as_prometheus_wants_it() {
        let metrics = [
            Metric::new(MetricKind::Gauge, "a_bytes", "Say \"a\" \\ b.").with(&[], 1_234_567_890_123.0),
            Metric::new(MetricKind::Counter, "b_total", "B.")
                .with(&[("ve", "x\"\\\ny"), ("kind", "k")], 2.0)
                .with(&[("ve", "z")], 0.5),
            Metric::new(MetricKind::Gauge, "none", "Nothing."),
        ];
        let text = "# HELP a_bytes Say \"a\" \\\\ b.\n# TYPE a_bytes gauge\na_bytes 1234567890123\n\
            # HELP b_total B.\n# TYPE b_total counter\nb_total{kind=\"k\",ve=\"x\\\"\\\\\\ny\"} 2\nb_total{ve=\"z\"} 0.5\n\
            # HELP none Nothing.\n# TYPE none gauge\n";
        assert_eq!(exposition(&metrics), text);
    }
}
