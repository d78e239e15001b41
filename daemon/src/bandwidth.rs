//! Which limits a pod gets: its class, what the runtime asks for, and what its partition allows. Pure.
//!
//! A tenant cannot grant itself: `allowedClasses` and `maximum` of the partition cap the class annotation and the
//! runtime's `bandwidth` alike.

use crate::net::{Limit, Limits};
use bulkhead_api::{
    messages::{ObjectError, RuntimeBandwidth},
    objects::{
        ANNOTATION_BANDWIDTH_CLASS, BUILT_IN_CLASSES, BandwidthClassSpec, PartitionBandwidth, Quantity,
    },
};
use bulkhead_policy::{Named, Sourced};

/// The limits of a pod, and what set them.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct PodBandwidth {
    pub class: Option<String>,
    pub limits: Limits,
    pub origins: Origins,
}

/// What set the limit of each direction; none where there is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Origins {
    pub ingress: Option<Origin>,
    pub egress: Option<Origin>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Annotation,
    PartitionDefault,
    PartitionMaximum,
    Runtime,
}

impl Origin {
    pub fn name(self) -> &'static str {
        match self {
            Self::Annotation => "annotation",
            Self::PartitionDefault => "partition default",
            Self::PartitionMaximum => "partition maximum",
            Self::Runtime => "runtime",
        }
    }
}

/// `annotation` is the pod's own wish, `runtime` the runtime's.
///
/// # Errors
/// A class that does not exist, or that the partition does not allow.
pub fn pod_bandwidth(
    classes: &Named<Sourced<BandwidthClassSpec>>,
    partition: Option<&PartitionBandwidth>,
    annotation: Option<&str>,
    runtime: Option<RuntimeBandwidth>,
) -> Result<PodBandwidth, ObjectError> {
    let class = match annotation {
        Some(wish) => {
            check_allowed(partition, wish)?;
            Some(wish)
        }
        None => partition.and_then(|p| p.default_class.as_deref()),
    };
    let spec = class.map(|name| find(classes, name)).transpose()?;
    let by = if annotation.is_some() { Origin::Annotation } else { Origin::PartitionDefault };
    let of_class = spec.map(|s| (Limit { rate_bits: s.rate.0, burst_bytes: s.burst_bytes() }, by));
    let runtime = runtime.unwrap_or_default();
    let maximum = partition.and_then(|p| p.maximum);
    let ingress = lowest(of_class, runtime.ingress_rate, runtime.ingress_burst, maximum);
    let egress = lowest(of_class, runtime.egress_rate, runtime.egress_burst, maximum);
    Ok(PodBandwidth {
        class: class.map(str::to_string),
        limits: Limits { ingress: ingress.map(|(limit, _)| limit), egress: egress.map(|(limit, _)| limit) },
        origins: Origins { ingress: ingress.map(|(_, by)| by), egress: egress.map(|(_, by)| by) },
    })
}

fn check_allowed(partition: Option<&PartitionBandwidth>, wish: &str) -> Result<(), ObjectError> {
    match partition {
        Some(p) if !p.allowed_classes.is_empty() && !p.allowed_classes.iter().any(|c| c == wish) => {
            Err(refused(format!(
                "the partition does not allow class `{wish}`: it allows {}",
                p.allowed_classes.join(", ")
            )))
        }
        _ => Ok(()),
    }
}

fn find(classes: &Named<Sourced<BandwidthClassSpec>>, name: &str) -> Result<BandwidthClassSpec, ObjectError> {
    let built_in = || {
        let (_, rate) = BUILT_IN_CLASSES.iter().find(|(n, _)| *n == name)?;
        Some(BandwidthClassSpec { rate: Quantity(*rate), burst: None })
    };
    classes.get(name).map(|c| c.spec).or_else(built_in).ok_or_else(|| {
        let known = BUILT_IN_CLASSES.iter().map(|(n, _)| *n).chain(classes.keys().map(String::as_str));
        let known: std::collections::BTreeSet<_> = known.collect();
        let known: Vec<_> = known.into_iter().collect();
        refused(format!("there is no bandwidth class `{name}`: there are {}", known.join(", ")))
    })
}

fn refused(message: String) -> ObjectError {
    let field = format!("metadata.annotations[{ANNOTATION_BANDWIDTH_CLASS}]");
    ObjectError { file: None, object: None, field: Some(field), message }
}

/// The lowest of the class, the runtime's rate (bits a second, 0: none; its burst in bits) and the partition's maximum.
fn lowest(
    class: Option<(Limit, Origin)>,
    rate: u64,
    burst_bits: u64,
    maximum: Option<Quantity>,
) -> Option<(Limit, Origin)> {
    let of_rate = |rate: u64| {
        let spec = BandwidthClassSpec { rate: Quantity(rate), burst: None };
        Limit { rate_bits: rate, burst_bytes: spec.burst_bytes() }
    };
    let runtime = (rate > 0).then(|| {
        let least = of_rate(rate);
        (Limit { burst_bytes: least.burst_bytes.max(burst_bits / 8), ..least }, Origin::Runtime)
    });
    let maximum = maximum.map(|m| (of_rate(m.0), Origin::PartitionMaximum));
    [class, runtime, maximum].into_iter().flatten().min_by_key(|(limit, _)| limit.rate_bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn rates(b: PodBandwidth) -> (Option<u64>, Option<u64>) {
        (b.limits.ingress.map(|l| l.rate_bits), b.limits.egress.map(|l| l.rate_bits))
    }

    #[test]
    fn a_class_limits_both_directions_and_no_class_limits_neither() {
        let low = pod_bandwidth(&Named::new(), None, Some("low"), None).unwrap();
        assert_eq!(rates(low), (Some(1_000_000_000), Some(1_000_000_000)));
        assert_eq!(pod_bandwidth(&Named::new(), None, None, None).unwrap(), PodBandwidth::default());
    }

    #[test]
    fn the_partition_gives_the_default_class_and_caps_every_wish() {
        let partition = PartitionBandwidth {
            default_class: Some("management".into()),
            allowed_classes: vec!["low".into()],
            maximum: Some(Quantity(600_000_000)),
        };
        let of = |annotation, runtime| pod_bandwidth(&Named::new(), Some(&partition), annotation, runtime);
        assert_eq!(rates(of(None, None).unwrap()), (Some(500_000_000), Some(500_000_000)));
        assert_eq!(rates(of(Some("low"), None).unwrap()), (Some(600_000_000), Some(600_000_000)));
        let runtime =
            RuntimeBandwidth { ingress_rate: 9_000_000_000, egress_rate: 1_000, ..Default::default() };
        assert_eq!(rates(of(Some("low"), Some(runtime)).unwrap()), (Some(600_000_000), Some(1_000)));
        let error = of(Some("high"), None).unwrap_err().to_string();
        assert!(error.contains("does not allow class `high`: it allows low"), "{error}");
    }

    #[test]
    fn each_direction_says_what_set_its_limit() {
        let runtime = Some(RuntimeBandwidth { egress_rate: 1_000, ..Default::default() });
        let of = |partition: Option<&PartitionBandwidth>, annotation| {
            let origins = pod_bandwidth(&Named::new(), partition, annotation, runtime).unwrap().origins;
            [origins.ingress, origins.egress].map(|o| o.map(Origin::name))
        };
        assert_eq!(of(None, None), [None, Some("runtime")]);
        assert_eq!(of(None, Some("low")), [Some("annotation"), Some("runtime")]);
        let mut partition =
            PartitionBandwidth { default_class: Some("low".into()), allowed_classes: vec![], maximum: None };
        assert_eq!(of(Some(&partition), None), [Some("partition default"), Some("runtime")]);
        partition.maximum = Some(Quantity(600));
        assert_eq!(of(Some(&partition), None), [Some("partition maximum"); 2]);
    }

    #[test]
    fn an_object_replaces_a_built_in_class_and_an_unknown_class_is_refused() {
        let spec = BandwidthClassSpec { rate: Quantity(7_000_000), burst: Some(Quantity(9_000)) };
        let classes = Named::from_iter([("low".to_string(), Arc::new(Sourced::new(spec, None)))]);
        let low = pod_bandwidth(&classes, None, Some("low"), None).unwrap();
        assert_eq!(low.limits.egress, Some(Limit { rate_bits: 7_000_000, burst_bytes: 9_000 }));
        let error = pod_bandwidth(&classes, None, Some("fast"), None).unwrap_err().to_string();
        assert!(
            error.contains("no bandwidth class `fast`: there are high, low, management, medium"),
            "{error}"
        );
    }
}
