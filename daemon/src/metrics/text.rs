//! Prometheus' text format, version 0.0.4. Pure.

use std::fmt::{Display, Write};

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Gauge,
    Counter,
    Histogram,
}

/// A metric: what it is called, and what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
    pub labels: &'static [&'static str],
}

impl Metric {
    pub const fn gauge(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Self {
        Self { name, kind: Kind::Gauge, help, labels }
    }

    pub const fn counter(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Self {
        Self { name, kind: Kind::Counter, help, labels }
    }
}

/// What is exported. Samples of one metric follow each other.
#[derive(Debug, Default)]
pub struct Page {
    out: String,
    last: &'static str,
}

impl Page {
    /// `values`: of the metric's labels, in their order.
    pub fn sample(&mut self, metric: &Metric, values: &[&str], value: impl Display) {
        self.head(metric);
        self.line(metric.name, metric.labels, values, value);
    }

    pub fn histogram(&mut self, metric: &Metric, histogram: &Histogram) {
        self.head(metric);
        let mut below = 0;
        for (bound, count) in histogram.bounds.iter().zip(&histogram.counts) {
            below += count;
            self.line(&format!("{}_bucket", metric.name), &["le"], &[&bound.to_string()], below);
        }
        self.line(&format!("{}_bucket", metric.name), &["le"], &["+Inf"], histogram.count);
        self.line(&format!("{}_sum", metric.name), &[], &[], histogram.sum);
        self.line(&format!("{}_count", metric.name), &[], &[], histogram.count);
    }

    fn head(&mut self, metric: &Metric) {
        if self.last == metric.name {
            return;
        }
        self.last = metric.name;
        let kind = match metric.kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
            Kind::Histogram => "histogram",
        };
        // Writing to a String does not fail.
        let _ = writeln!(self.out, "# HELP {0} {1}\n# TYPE {0} {kind}", metric.name, metric.help);
    }

    fn line(&mut self, name: &str, labels: &[&str], values: &[&str], value: impl Display) {
        self.out.push_str(name);
        let pairs: Vec<String> = labels
            .iter()
            .zip(values)
            .map(|(label, value)| format!("{label}=\"{}\"", escaped(value)))
            .collect();
        if !pairs.is_empty() {
            let _ = write!(self.out, "{{{}}}", pairs.join(","));
        }
        let _ = writeln!(self.out, " {value}");
    }

    pub fn into_text(self) -> String {
        self.out
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Seconds, in buckets.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    bounds: &'static [f64],
    counts: Vec<u64>,
    count: u64,
    sum: f64,
}

impl Histogram {
    /// `bounds`: ascending.
    pub fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len()], count: 0, sum: 0.0 }
    }

    pub fn observe(&mut self, seconds: f64) {
        if let Some(index) = self.bounds.iter().position(|bound| seconds <= *bound) {
            self.counts[index] += 1;
        }
        self.count += 1;
        self.sum += seconds;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_as_prometheus_reads_it() {
        let up = Metric::gauge("up", "Whether it is.", &["peer"]);
        let took = Metric { name: "took_seconds", kind: Kind::Histogram, help: "How long.", labels: &[] };
        let mut histogram = Histogram::new(&[0.5, 1.0]);
        [0.25, 0.5, 0.75, 2.5].into_iter().for_each(|seconds| histogram.observe(seconds));
        let mut page = Page::default();
        page.sample(&up, &["a\"b\\c\nd"], 1);
        page.sample(&up, &["e"], 0.5);
        page.histogram(&took, &histogram);
        assert_eq!(
            page.into_text(),
            "\
# HELP up Whether it is.
# TYPE up gauge
up{peer=\"a\\\"b\\\\c\\nd\"} 1
up{peer=\"e\"} 0.5
# HELP took_seconds How long.
# TYPE took_seconds histogram
took_seconds_bucket{le=\"0.5\"} 2
took_seconds_bucket{le=\"1\"} 3
took_seconds_bucket{le=\"+Inf\"} 4
took_seconds_sum 4
took_seconds_count 4
"
        );
    }
}
