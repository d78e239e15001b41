//! Which fixed addresses a pod has. Pure.
//!
//! A tenant grants itself nothing: the addresses come from an `IPReservation` in the pod's own namespace, and lie in what the
//! partition keeps for reservations. The annotation only says what the pod expects.

use bulkhead_api::{messages::ObjectError, objects::IPReservationSpec};
use bulkhead_policy::{Named, Objects};
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// The addresses of `pod`, IPv4 first; empty where it may have any. `reservations`: those of its namespace, by name;
/// `ranges`: the fixedCIDRs of its partition. The error says what to do.
pub fn fixed<'a>(
    pod: &str,
    asked: Option<&str>,
    reservations: impl Iterator<Item = (&'a str, &'a IPReservationSpec)>,
    partition: &str,
    ranges: &[IpNetwork],
) -> Result<Vec<IpAddr>, String> {
    let mut own = reservations.filter(|(_, spec)| spec.pod == pod);
    let (name, spec) = match (own.next(), own.next()) {
        (Some((a, _)), Some((b, _))) => {
            return Err(format!("the reservations {a} and {b} are both for pod {pod}: delete one of them"));
        }
        (Some(one), None) => one,
        (None, _) => return asked.map_or(Ok(Vec::new()), |asked| Err(without(pod, asked))),
    };
    let addresses: BTreeSet<IpAddr> = spec.addresses.iter().copied().collect();
    if let Some(asked) = asked
        && parse(asked)? != addresses
    {
        return Err(format!(
            "the annotation asks for {asked}, and the reservation {name} gives {}",
            list(&addresses)
        ));
    }
    if let Some(outside) = addresses.iter().find(|a| !ranges.iter().any(|r| r.contains(**a))) {
        return Err(format!(
            "{outside} of the reservation {name} lies outside spec.fixedCIDRs of partition {partition}, which are {}",
            list(ranges)
        ));
    }
    Ok(addresses.into_iter().collect())
}

/// Reservations that no pod will get anything by.
pub fn faults(objects: &Objects, reservations: &Named<IPReservationSpec>) -> Vec<ObjectError> {
    let mut faults = Vec::new();
    let mut first: BTreeMap<IpAddr, &str> = BTreeMap::new();
    for (key, spec) in reservations {
        let namespace = key.split_once('/').map_or("", |(namespace, _)| namespace);
        let partition = objects.partition_of_namespace(namespace);
        let ranges = objects.partitions.get(partition).map_or(&[][..], |p| &p.spec.fixed_cidrs);
        let mut add = |i: usize, message: String| {
            let field = Some(format!("spec.addresses[{i}]"));
            faults.push(ObjectError {
                file: None,
                object: Some(format!("IPReservation/{key}")),
                field,
                message,
            });
        };
        for (i, address) in spec.addresses.iter().enumerate() {
            if !ranges.iter().any(|r| r.contains(*address)) {
                let ranges = list(ranges);
                add(
                    i,
                    format!(
                        "{address} lies outside spec.fixedCIDRs of partition {partition}, which are {ranges}"
                    ),
                );
            } else if let Some(other) = first.get(address) {
                add(i, format!("{address} is given by IPReservation/{other} already"));
            }
            first.entry(*address).or_insert(key);
        }
    }
    faults
}

fn without(pod: &str, asked: &str) -> String {
    format!(
        "the annotation asks for {asked}, and no IPReservation of the namespace is for pod {pod}: create one"
    )
}

fn parse(asked: &str) -> Result<BTreeSet<IpAddr>, String> {
    let one =
        |text: &str| text.trim().parse().map_err(|_| format!("{text} in the annotation is no IP address"));
    asked.split(',').map(one).collect()
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<_> = items.into_iter().map(|i| i.to_string()).collect();
    if items.is_empty() { "none".into() } else { items.join(", ") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn of(asked: Option<&str>, reservations: &[(&str, &str, &str)]) -> Result<Vec<String>, String> {
        let specs: Vec<_> = reservations
            .iter()
            .map(|(name, pod, addresses)| {
                let addresses = addresses.split(',').map(|a| a.parse().unwrap()).collect();
                (*name, IPReservationSpec { addresses, pod: (*pod).into() })
            })
            .collect();
        let ranges = ["10.65.15.0/28".parse().unwrap(), "fd00:65:f::/64".parse().unwrap()];
        let specs = specs.iter().map(|(name, spec)| (*name, spec));
        fixed("db-0", asked, specs, "web", &ranges).map(|a| a.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_reservation_for_the_pod_decides_and_the_others_do_not() {
        let all = [("a", "db-1", "10.65.15.1"), ("b", "db-0", "fd00:65:f::7,10.65.15.7")];
        assert_eq!(of(None, &all).unwrap(), ["10.65.15.7", "fd00:65:f::7"]);
        assert_eq!(of(Some("fd00:65:f::7, 10.65.15.7"), &all).unwrap().len(), 2);
        assert_eq!(of(None, &all[..1]).unwrap(), [""; 0]);
    }

    #[test]
    fn nobody_grants_himself_an_address() {
        let error = of(Some("10.65.15.7"), &[("a", "db-1", "10.65.15.7")]).unwrap_err();
        assert!(error.contains("no IPReservation of the namespace is for pod db-0"), "{error}");
        let error = of(Some("10.65.15.8"), &[("a", "db-0", "10.65.15.7")]).unwrap_err();
        assert!(error.contains("the reservation a gives 10.65.15.7"), "{error}");
        let error = of(None, &[("a", "db-0", "10.65.3.7")]).unwrap_err();
        assert!(
            error.contains("10.65.3.7 of the reservation a lies outside spec.fixedCIDRs of partition web"),
            "{error}"
        );
        let error = of(None, &[("a", "db-0", "10.65.15.7"), ("b", "db-0", "10.65.15.8")]).unwrap_err();
        assert!(error.contains("a and b are both for pod db-0"), "{error}");
        assert!(of(Some("x"), &[("a", "db-0", "10.65.15.7")]).unwrap_err().contains("x in the annotation"));
    }
}
