//! `services`.

use super::list;
use crate::{
    paint::{Colour, Paint},
    table::{self, number, text},
    units,
};
use bulkhead_api::messages::{FrontendInfo, Services};

pub fn services(services: &Services, paint: Paint) -> String {
    let mut out = if services.frontends.is_empty() {
        "no service is translated at the socket\n".to_string()
    } else {
        let header = ["SERVICE", "KIND", "ADDRESS", "PORT", "PROTOCOL", "AFFINITY", "BACKENDS"];
        table::with_header(&header, services.frontends.iter().map(row).collect(), paint)
    };
    if !services.left.is_empty() {
        out += "\nnot translated at the socket\n";
        let row = |left: &bulkhead_api::messages::LeftInfo| {
            let what = left.what.clone().unwrap_or_else(|| "all of it".into());
            vec![text(&left.service), text(what), text(&left.why)]
        };
        out += &table::columns(services.left.iter().map(row).collect(), "  ", paint);
    }
    out
}

fn row(frontend: &FrontendInfo) -> Vec<table::Cell> {
    let any = if frontend.ipv6 { "any node, IPv6" } else { "any node, IPv4" };
    let address = frontend.address.map_or_else(|| any.to_string(), |a| a.to_string());
    let affinity = frontend.affinity_seconds.map(|s| units::duration(s.into()));
    let backends = match &frontend.backends[..] {
        [] => text("none: refused").colour(Colour::Warning),
        backends => text(list(backends)),
    };
    vec![
        text(&frontend.service),
        text(&frontend.kind),
        text(address),
        number(frontend.port),
        text(&frontend.protocol),
        text(affinity.unwrap_or_else(|| "-".into())),
        backends,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paint::PLAIN;
    use bulkhead_api::messages::LeftInfo;

    fn frontend(kind: &str, address: Option<[u8; 4]>, backends: &[&str]) -> FrontendInfo {
        FrontendInfo {
            service: "shop/cart".into(),
            port_name: "http".into(),
            kind: kind.into(),
            address: address.map(Into::into),
            ipv6: false,
            port: 80,
            protocol: "tcp".into(),
            affinity_seconds: address.map(|_| 600),
            backends: backends.iter().map(|b| b.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn services_show_their_backends_and_what_is_left_out() {
        let left = LeftInfo { service: "shop/db".into(), what: None, why: "headless".into() };
        let frontends = vec![
            frontend("ClusterIP", Some([10, 96, 0, 9]), &["10.64.0.1:8080", "10.64.0.2:8080"]),
            frontend("NodePort", None, &[]),
        ];
        let expected = "\
SERVICE    KIND       ADDRESS         PORT  PROTOCOL  AFFINITY  BACKENDS
shop/cart  ClusterIP  10.96.0.9         80  tcp       10 min    10.64.0.1:8080, 10.64.0.2:8080
shop/cart  NodePort   any node, IPv4    80  tcp       -         none: refused

not translated at the socket
  shop/db  all of it  headless
";
        assert_eq!(services(&Services { frontends, left: vec![left] }, PLAIN), expected);
    }
}
