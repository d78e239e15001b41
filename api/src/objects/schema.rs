//! What the API server checks of a field before a daemon sees it: schemas, and rules in CEL.
//!
//! The API server bounds what a rule may cost at most, so lists that rules look into are bounded too. Only what one object
//! says of itself stands here; a daemon checks all of it again, and what depends on other objects.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// Addresses and networks in text: an IPv4 address in IPv6 clothes with its prefix is the longest.
const CIDR_LENGTH: usize = 49;
const MASKED: &str = "cidr(self).masked() == cidr(self)";
const MASKED_MESSAGE: &str = "has bits set beyond its prefix: write the network's own address";

pub fn ip(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": CIDR_LENGTH,
        "x-kubernetes-validations": [{"rule": "isIP(self)", "message": "is not an IP address"}],
    })
}

/// Of a peer. There may be so many of them in a partition that a rule would cost too much: a daemon looks closer.
pub fn cidr(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "cidr"})
}

/// Parts of a peer's CIDR.
pub fn exceptions(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "items": cidr(generator), "maxItems": 64})
}

fn strict_cidr() -> Schema {
    network(json!([
        {"rule": "isCIDR(self)", "message": "is not a CIDR: write an address and a prefix length"},
        {"rule": format!("!isCIDR(self) || {MASKED}"), "message": MASKED_MESSAGE},
    ]))
}

/// A CIDR in the one way that an object may be named after, and no larger than daemons cut blocks.
pub fn block_cidr(_: &mut SchemaGenerator) -> Schema {
    network(json!([
        {"rule": format!("isCIDR(self) && {MASKED}"), "message": MASKED_MESSAGE},
        {"rule": "isCIDR(self) && string(cidr(self)) == self", "message": "is not written in the shortest form"},
        {
            "rule": "isCIDR(self) && cidr(self).prefixLength() >= (cidr(self).ip().family() == 4 ? 26 : 122)",
            "message": "is no block: one has 64 addresses at most",
        },
    ]))
}

fn network(rules: Value) -> Schema {
    json_schema!({"type": "string", "maxLength": CIDR_LENGTH, "x-kubernetes-validations": rules})
}

/// Of a partition.
pub fn ranges(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "items": strict_cidr(), "maxItems": 64})
}

/// What is announced of them draws everybody's traffic: no default route.
pub fn service_ranges(_: &mut SchemaGenerator) -> Schema {
    let no_default = json!([{
        "rule": "!self.exists(range, isCIDR(range) && cidr(range).prefixLength() == 0)",
        "message": "holds a default route: name the services' own ranges",
    }]);
    json_schema!({"type": "array", "items": strict_cidr(), "maxItems": 64, "x-kubernetes-validations": no_default})
}

/// Of a network group.
pub fn many_cidrs(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "items": strict_cidr(), "maxItems": 8192})
}

pub fn one_of_each_family(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": ip(generator),
        "minItems": 1,
        "maxItems": 2,
        "x-kubernetes-validations": [{
            "rule": "self.size() < 2 || !self.all(a, isIP(a)) || ip(self[0]).family() != ip(self[1]).family()",
            "message": "both addresses are of one family: write one, or one of each",
        }],
    })
}

pub fn communities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 64,
        "items": {
            "type": "string",
            "maxLength": 32,
            "x-kubernetes-validations": [{
                "rule": "self.matches('^[0-9]{1,5}:[0-9]{1,5}$') && self.split(':').all(n, int(n) <= 65535) || \
                         self.matches('^[0-9]{1,10}(:[0-9]{1,10}){2}$') && self.split(':').all(n, int(n) <= 4294967295)",
                "message": "is not a community: write 65000:100, or a large one as 65000:1:2",
            }],
        },
    })
}

fn add(schema: &mut Schema, rules: Value) {
    schema.insert("x-kubernetes-validations".into(), rules);
}

/// What a partition says of its ranges together.
pub fn pod_ranges(schema: &mut Schema) {
    let within = "self.podCIDRs.exists(range, isCIDR(range) && cidr(range).containsCIDR(fixed))";
    add(
        schema,
        json!([
            {
                "rule": "self.podCIDRs.size() > 0",
                "message": "is empty: a partition needs at least one range for its pods",
                "fieldPath": ".podCIDRs",
            },
            {
                "rule": format!("!has(self.fixedCIDRs) || self.fixedCIDRs.all(fixed, !isCIDR(fixed) || {within})"),
                "message": "lies in none of spec.podCIDRs: it is a part of them that is kept for reservations",
                "fieldPath": ".fixedCIDRs",
            },
        ]),
    );
}

pub fn policy_id(schema: &mut Schema) {
    let message = "policyID is never changed: make a new Partition";
    add(schema, json!([{"rule": "self == oldSelf", "message": message}]));
}

pub fn immutable(schema: &mut Schema) {
    add(
        schema,
        json!([{"rule": "self == oldSelf", "message": "is never changed: delete the object and make it anew"}]),
    );
}

/// RFC 4271 section 4.2.
pub fn hold_time(schema: &mut Schema) {
    add(
        schema,
        json!([{"rule": "self == 0 || self >= 3", "message": "must be 0, or at least 3 (RFC 4271 section 4.2)"}]),
    );
}

pub fn one_peer(schema: &mut Schema) {
    let fields = super::PEER_FIELDS;
    let set: Vec<_> = fields.iter().map(|field| format!("has(self.{field})")).collect();
    let message = format!("a peer is exactly one of {}", fields.join(", "));
    let rule = format!("[{}].exists_one(set, set)", set.join(", "));
    add(schema, json!([{"rule": rule, "message": message}]));
}

pub fn port_range(schema: &mut Schema) {
    add(
        schema,
        json!([
            {
                "rule": "!has(self.endPort) || has(self.port)",
                "message": "endPort has no port: write the range's first port in `port`",
                "fieldPath": ".endPort",
            },
            {
                "rule": "!has(self.endPort) || !has(self.port) || self.port <= self.endPort",
                "message": "the range is upside down: endPort is below port",
                "fieldPath": ".endPort",
            },
            {
                "rule": "self.protocol != 'ICMP' || [has(self.port) ? self.port : 0, has(self.endPort) ? self.endPort : 0].all(t, t <= 255)",
                "message": "ICMP types go from 0 to 255",
            },
        ]),
    );
}
