//! Figures that are promised: what was measured, and the most it may be.

use serde::Serialize;

/// One row of `results.jsonl`. Less is better, for all of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    pub name: &'static str,
    pub ours: f64,
    /// The same measured on something to compare with.
    pub reference: Option<f64>,
    /// `ours` / `reference`.
    pub ratio: Option<f64>,
    pub unit: &'static str,
    /// The most it may be, where that is promised.
    pub target: Option<f64>,
    pub met: Option<bool>,
}

impl Figure {
    pub fn new(name: &'static str, ours: f64, unit: &'static str) -> Self {
        Self { name, ours, reference: None, ratio: None, unit, target: None, met: None }
    }

    pub fn beside(mut self, reference: f64) -> Self {
        self.reference = Some(reference);
        self.ratio = (reference > 0.0).then(|| self.ours / reference);
        self
    }

    pub fn at_most(mut self, target: f64) -> Self {
        self.target = Some(target);
        self.met = Some(self.ours <= target);
        self
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
    fn a_row_has_every_column() {
        let row = serde_json::to_string(&Figure::new("x", 3.0, "ms").beside(2.0)).unwrap();
        assert_eq!(
            row,
            r#"{"name":"x","ours":3.0,"reference":2.0,"ratio":1.5,"unit":"ms","target":null,"met":null}"#
        );
    }
}
