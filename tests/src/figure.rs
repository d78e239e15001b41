//! Figures that are promised: what was measured, beside what, and what it has to be.

use serde::Serialize;

/// One row of `results.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    pub name: String,
    pub ours: f64,
    /// The same measured on something to compare with, in the same run.
    pub reference: Option<f64>,
    /// `ours` / `reference`.
    pub ratio: Option<f64>,
    pub unit: &'static str,
    /// What is promised, where something is; of which column, says [`Bound`].
    pub target: Option<f64>,
    pub met: Option<bool>,
    /// Why something was not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(skip)]
    pub bound: Option<Bound>,
}

/// How a target is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    AtMost,
    /// `ours` is at most `reference` + target.
    AtMostBeyond,
    RatioAtMost,
    RatioAtLeast,
}

impl Figure {
    pub fn new(name: impl Into<String>, ours: f64, unit: &'static str) -> Self {
        let name = name.into();
        Self {
            name,
            ours,
            reference: None,
            ratio: None,
            unit,
            target: None,
            met: None,
            error: None,
            bound: None,
        }
    }

    /// What could not be measured at all. Its promise, if there is one, is not met.
    pub fn failed(name: impl Into<String>, unit: &'static str, error: impl Into<String>) -> Self {
        Self { met: Some(false), error: Some(error.into()), ..Self::new(name, f64::NAN, unit) }
    }

    /// A measurement that may have failed.
    pub fn attempted(name: impl Into<String>, ours: Result<f64, String>, unit: &'static str) -> Self {
        match ours {
            Ok(ours) => Self::new(name, ours, unit),
            Err(error) => Self::failed(name, unit, error),
        }
    }

    /// Without the reference a promise that is told of it is not met; ours stands.
    pub fn beside_attempted(mut self, reference: Result<f64, String>) -> Self {
        match reference {
            Ok(reference) => self.beside(reference),
            Err(error) => {
                self.error.get_or_insert(error);
                self
            }
        }
    }

    pub fn beside(mut self, reference: f64) -> Self {
        self.reference = Some(reference);
        self.ratio = (reference > 0.0).then(|| self.ours / reference);
        self
    }

    pub fn at_most(self, target: f64) -> Self {
        let met = self.ours <= target;
        self.promised(Bound::AtMost, target, met)
    }

    /// At most so much more than the reference. Without a reference it is not met.
    pub fn at_most_beyond(self, target: f64) -> Self {
        let met = self.reference.is_some_and(|r| self.ours <= r + target);
        self.promised(Bound::AtMostBeyond, target, met)
    }

    /// Of the ratio to the reference.
    pub fn ratio_at_most(self, target: f64) -> Self {
        let met = self.ratio.is_some_and(|r| r <= target);
        self.promised(Bound::RatioAtMost, target, met)
    }

    /// Of the ratio to the reference.
    pub fn ratio_at_least(self, target: f64) -> Self {
        let met = self.ratio.is_some_and(|r| r >= target);
        self.promised(Bound::RatioAtLeast, target, met)
    }

    fn promised(mut self, bound: Bound, target: f64, met: bool) -> Self {
        (self.bound, self.target, self.met) = (Some(bound), Some(target), Some(met));
        self
    }

    /// The target in words; empty where nothing is promised.
    pub fn promise(&self) -> String {
        let (Some(bound), Some(target)) = (self.bound, self.target) else { return String::new() };
        match bound {
            Bound::AtMost => format!("at most {target}"),
            Bound::AtMostBeyond => format!("at most {target} beyond"),
            Bound::RatioAtMost => format!("ratio at most {target}"),
            Bound::RatioAtLeast => format!("ratio at least {target}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_met_up_to_the_target_itself() {
        let met = |ours| Figure::new("x", ours, "ms").at_most(5.0).met;
        assert_eq!([met(4.9), met(5.0), met(5.1)], [Some(true), Some(true), Some(false)]);
    }

    #[test]
    fn a_target_may_be_told_of_the_reference() {
        let figure = |ours| Figure::new("x", ours, "ns").beside(100.0);
        assert_eq!(figure(130.0).at_most_beyond(30.0).met, Some(true));
        assert_eq!(figure(131.0).at_most_beyond(30.0).met, Some(false));
        assert_eq!(figure(110.0).ratio_at_least(1.1).met, Some(true));
        assert_eq!(figure(110.0).ratio_at_most(1.0).met, Some(false));
    }

    #[test]
    fn what_has_no_reference_does_not_meet_a_target_told_of_it() {
        assert_eq!(Figure::new("x", 1.0, "ns").ratio_at_most(9.0).met, Some(false));
    }

    #[test]
    fn what_was_not_measured_says_why_and_meets_no_promise() {
        let failed = || Err::<f64, _>("no session".to_owned());
        let rows = [
            Figure::failed("x", "ms", "no session"),
            Figure::attempted("x", failed(), "ms").at_most(5.0),
            Figure::attempted("x", failed(), "ms").beside_attempted(Ok(2.0)).ratio_at_most(1.0),
            Figure::attempted("x", Ok(1.0), "ms").beside_attempted(failed()).ratio_at_most(1.0),
        ];
        for row in rows {
            assert_eq!((row.met, row.error.as_deref()), (Some(false), Some("no session")), "{row:?}");
        }
        let told = Figure::attempted("x", Ok(1.0), "ms").beside_attempted(failed());
        assert_eq!((told.ours, told.met), (1.0, None), "nothing was promised");
        let row = serde_json::to_string(&Figure::failed("x", "ms", "no session")).unwrap();
        assert!(row.contains(r#""ours":null"#) && row.contains(r#""error":"no session""#), "{row}");
    }

    #[test]
    fn a_row_has_every_column() {
        let row = serde_json::to_string(&Figure::new("x", 3.0, "ms").beside(2.0)).unwrap();
        assert_eq!(
            row,
            r#"{"name":"x","ours":3.0,"reference":2.0,"ratio":1.5,"unit":"ms","target":null,"met":null}"#
        );
    }
}
