//! Which limits a pod gets: its class, what the runtime asks for, and what its partition allows. Pure.
//!
//! A tenant cannot grant itself: `allowedClasses` and `maximum` of the partition cap the class annotation and the
//! runtime's `bandwidth` alike.

use crate::net::{Limit, Limits};
use bulkhead_api::{
    messages::{ObjectError, RuntimeBandwidth},
    objects::{
        ANNOTATION_BANDWIDTH_CLASS, ANNOTATION_EGRESS_BANDWIDTH, ANNOTATION_INGRESS_BANDWIDTH,
        BUILT_IN_CLASSES, BandwidthClassSpec, Labels, PartitionBandwidth, Quantity,
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

/// What the runtime asked for, with what the pod's annotations say of it by now. A direction that they do not name stays.
///
/// # Errors
/// An annotation that is no bandwidth.
pub fn asked_now(
    annotations: Option<&Labels>,
    runtime: Option<RuntimeBandwidth>,
) -> Result<Option<RuntimeBandwidth>, ObjectError> {
    let of = |name| annotations.and_then(|all| all.get(name)).map(|text| bits(name, text)).transpose();
    let (ingress, egress) = (of(ANNOTATION_INGRESS_BANDWIDTH)?, of(ANNOTATION_EGRESS_BANDWIDTH)?);
    if ingress.or(egress).is_none() {
        return Ok(runtime);
    }
    let was = runtime.unwrap_or_default();
    Ok(Some(RuntimeBandwidth {
        ingress_rate: ingress.unwrap_or(was.ingress_rate),
        egress_rate: egress.unwrap_or(was.egress_rate),
        ..was
    }))
}

/// As kubelets and runtimes read it, within their bounds: any quantity of Kubernetes.
fn bits(name: &str, text: &str) -> Result<u64, ObjectError> {
    let suffix = SUFFIXES.iter().find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)));
    let (number, factor) = suffix.unwrap_or((text, 1.0));
    let bits = number.parse::<f64>().map(|number| number * factor);
    bits.ok().filter(|bits| (1e3..=1e15).contains(bits)).map(|bits| bits as u64).ok_or_else(|| ObjectError {
        file: None,
        object: None,
        field: Some(format!("metadata.annotations[{name}]")),
        message: format!("`{text}` is no bandwidth: write bits a second from 1k to 1P, as `10M`"),
    })
}

const SUFFIXES: [(&str, f64); 10] = [
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("m", 1e-3),
];

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

/// What containerd and CRI-O write where nobody has asked for a burst, since the reference plugin refuses a rate without one: in bits.
const NO_BURST: u64 = u32::MAX as u64;

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
        let asked = if burst_bits == NO_BURST { 0 } else { burst_bits / 8 };
        (Limit { burst_bytes: least.burst_bytes.max(asked), ..least }, Origin::Runtime)
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
    fn what_the_runtime_asked_for_follows_the_annotations_and_the_partition_caps_it() {
        let asked =
            RuntimeBandwidth { ingress_rate: 5_000, ingress_burst: 7, egress_rate: 6_000, egress_burst: 8 };
        let now = |annotations: &[(&str, &str)]| {
            let annotations = annotations.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            asked_now(Some(&annotations), Some(asked)).map(Option::unwrap)
        };
        assert_eq!(now(&[(ANNOTATION_BANDWIDTH_CLASS, "low")]), Ok(asked));
        for (text, bits) in [("10M", 10_000_000), ("1.5k", 1_500), ("2Mi", 2_097_152), ("1e6", 1_000_000)] {
            let egress = RuntimeBandwidth { egress_rate: bits, ..asked };
            assert_eq!(now(&[(ANNOTATION_EGRESS_BANDWIDTH, text)]), Ok(egress));
        }
        for text in ["", "fast", "0", "10", "-1M", "2P", "inf", "nan", "1 M"] {
            let error = now(&[(ANNOTATION_INGRESS_BANDWIDTH, text)]).unwrap_err().to_string();
            assert!(error.contains(ANNOTATION_INGRESS_BANDWIDTH) && error.contains("1k to 1P"), "{error}");
        }
        let none = asked_now(None, None).unwrap();
        assert_eq!(none, None);
        let partition = PartitionBandwidth {
            default_class: None,
            allowed_classes: vec![],
            maximum: Some(Quantity(2_000)),
        };
        let runtime =
            Some(now(&[(ANNOTATION_INGRESS_BANDWIDTH, "1G"), (ANNOTATION_EGRESS_BANDWIDTH, "1k")]).unwrap());
        let capped = pod_bandwidth(&Named::new(), Some(&partition), None, runtime).unwrap();
        assert_eq!(rates(capped), (Some(2_000), Some(1_000)));
    }

    #[test]
    fn the_burst_that_runtimes_write_where_nobody_asked_for_one_is_none() {
        let burst = |egress_burst| {
            let runtime = RuntimeBandwidth { egress_rate: 8_000_000, egress_burst, ..Default::default() };
            let limits = pod_bandwidth(&Named::new(), None, None, Some(runtime)).unwrap().limits;
            limits.egress.unwrap().burst_bytes
        };
        assert_eq!(burst(u64::from(u32::MAX)), burst(0));
        assert_eq!((burst(80_000_000), burst(u64::from(u32::MAX) - 7)), (10_000_000, 536_870_911));
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
