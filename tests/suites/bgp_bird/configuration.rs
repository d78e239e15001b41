//! BIRD as this suite configures it.

use bulkhead_lab::bgp::site::{NODE, NODE_AS, ROUTER, ROUTER_AS, ROUTER6, Site};
use bulkhead_lab::{Bird, Result};

/// What the router is configured with.
pub struct Bgp {
    pub transport: [&'static str; 2],
    pub router_as: u32,
    pub node_as: u32,
    pub import: &'static str,
    pub hold_time: u16,
}

pub const BGP: Bgp =
    Bgp { transport: [ROUTER, NODE], router_as: ROUTER_AS, node_as: NODE_AS, import: "all", hold_time: 30 };

impl Bgp {
    pub fn start(&self, site: &Site) -> Result<Bird> {
        Bird::start(&site.router, &site.dir, &self.configuration())
    }

    /// As a data-centre router: graceful restart, learned routes into the kernel. Waits after errors are shortened.
    pub fn configuration(&self) -> String {
        let Bgp { transport: [here, there], router_as, node_as, import, hold_time } = self;
        let kernel = |family| {
            format!("protocol kernel {{ {family} {{ import none; export where source = RTS_BGP; }}; }}\n")
        };
        format!(
            "log stderr all;\nrouter id {ROUTER};\nprotocol device {{}}\nprotocol direct {{ ipv4; ipv6; }}\n{}{}\
             protocol static {{ ipv4; route 10.99.0.0/16 blackhole {{ bgp_community.add((65020,7)); }}; }}\n\
             protocol static {{ ipv6; route fd00:99::/32 blackhole; }}\n\
             protocol bgp node {{\n  local {here} as {router_as};\n  neighbor {there} as {node_as};\n  \
             graceful restart on;\n  hold time {hold_time};\n  connect delay time 1;\n  connect retry time 2;\n  \
             error wait time 1, 2;\n  \
             ipv4 {{ import {import}; export where source = RTS_STATIC; next hop address {ROUTER}; }};\n  \
             ipv6 {{ import {import}; export where source = RTS_STATIC; next hop address {ROUTER6}; }};\n}}\n",
            kernel("ipv4"),
            kernel("ipv6"),
        )
    }
}
