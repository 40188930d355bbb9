//! The page that Prometheus reads, in either of the formats that it asks for.
//!
//! One is written, OpenMetrics; the older is made of its text, so that both have the same samples.

use std::collections::HashMap;
use std::fmt;

use super::Metrics;

/// What a page is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageFormat {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The text format of Prometheus, version 0.0.4.
    Text,
}

impl PageFormat {
    /// As it is called on the web.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

impl Metrics {
    /// The page that Prometheus reads.
    ///
    /// # Errors
    ///
    /// A metric can't be written as text: a fault of the program.
    pub fn page(&self, format: PageFormat) -> Result<String, fmt::Error> {
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &self.registry)?;
        Ok(match format {
            PageFormat::OpenMetrics => page,
            PageFormat::Text => as_text(&page),
        })
    }
}

/// The older text format knows neither `info` nor an end, and families are called as their samples.
fn as_text(page: &str) -> String {
    let kinds = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let kinds: HashMap<&str, &str> = kinds.collect();
    let mut text = String::with_capacity(page.len() + 1024);
    for line in page.lines().filter(|line| *line != "# EOF") {
        let comment = line.strip_prefix("# ").and_then(|rest| {
            let (word, rest) = rest.split_once(' ')?;
            let (family, rest) = rest.split_once(' ')?;
            Some((word, family, rest))
        });
        match comment {
            Some((word, family, rest)) => {
                let (suffix, kind) = match kinds.get(family) {
                    Some(&"counter") => ("_total", "counter"),
                    Some(&"info") => ("_info", "gauge"),
                    Some(kind) => ("", *kind),
                    None => ("", "untyped"),
                };
                let rest = if word == "TYPE" { kind } else { rest };
                text.push_str(&format!("# {word} {family}{suffix} {rest}"));
            }
            None => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::Nothing;
    use super::*;

    #[test]
    fn the_older_format_has_the_same_samples_under_their_own_names() {
        let metrics = Metrics::new(Box::new(Nothing));
        metrics.refuse("all", "no_backend");
        let page = metrics.page(PageFormat::OpenMetrics).unwrap();
        let text = metrics.page(PageFormat::Text).unwrap();
        let samples = |page: &str| {
            let samples = page.lines().filter(|line| !line.starts_with('#'));
            samples.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(samples(&page), samples(&text));
        for line in [
            "# TYPE steadfast_refused_total counter",
            "# HELP steadfast_refused_total Requests and connections that the proxy itself refused.",
            "# TYPE steadfast_build_info gauge",
            "# TYPE steadfast_workers gauge",
        ] {
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
        assert!(!text.contains("EOF"));
    }
}
