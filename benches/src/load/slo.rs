//! What a request has to keep to count as good.

use std::fmt;
use std::str::FromStr;

use super::record::Record;

/// Written `ttft:500`, `tpot:80`, `itl:200` (its largest gap) or `e2e:10000`: milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slo {
    metric: Metric,
    ms: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Metric {
    Ttft,
    Tpot,
    Itl,
    E2e,
}

const METRICS: [(&str, Metric); 4] =
    [("ttft", Metric::Ttft), ("tpot", Metric::Tpot), ("itl", Metric::Itl), ("e2e", Metric::E2e)];

impl Slo {
    pub fn is_met(&self, record: &Record) -> bool {
        let seconds = match self.metric {
            Metric::Ttft => record.ttft,
            Metric::E2e => Some(record.e2e),
            // A single token has no time between tokens.
            Metric::Tpot => Some(record.tpot().unwrap_or(0.0)),
            Metric::Itl => Some(record.gaps.iter().fold(0f32, |m, gap| m.max(*gap)).into()),
        };
        seconds.is_some_and(|seconds| seconds * 1e3 <= self.ms)
    }
}

impl FromStr for Slo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (name, ms) = text.split_once(':')?;
            let (_, metric) = METRICS.iter().find(|(known, _)| *known == name)?;
            let ms = ms.parse().ok().filter(|ms: &f64| *ms > 0.0)?;
            Some(Self { metric: *metric, ms })
        };
        read().ok_or_else(|| {
            format!("`{text}` is none of ttft:500, tpot:80, itl:200 and e2e:10000 (milliseconds)")
        })
    }
}

impl fmt::Display for Slo {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let name = METRICS.iter().find(|(_, metric)| *metric == self.metric).map_or("", |m| m.0);
        write!(f, "{name} at most {} ms", self.ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bound_looks_at_its_own_time() {
        let record = Record {
            ttft: Some(0.2),
            gaps: vec![0.01, 0.09],
            e2e: 0.3,
            output_tokens: 3,
            ..Record::default()
        };
        for (slo, is_met) in [
            ("ttft:200", true),
            ("ttft:199", false),
            ("tpot:50", true),
            ("tpot:49", false),
            ("itl:91", true),
            ("itl:89", false),
            ("e2e:300", true),
            ("e2e:299", false),
        ] {
            assert_eq!(slo.parse::<Slo>().unwrap().is_met(&record), is_met, "{slo}");
        }
        assert!(!"ttft:1".parse::<Slo>().unwrap().is_met(&Record::default()));
    }

    #[test]
    fn what_is_no_bound_is_refused() {
        for bad in ["", "ttft", "ttft:", "ttft:-1", "rps:3", "ttft:x"] {
            assert!(bad.parse::<Slo>().is_err(), "{bad}");
        }
    }
}
