//! `cargo xtask bench`: what it measures and compares with works. The figures are the bench's affair.

use std::time::Duration;

use sluice_tests::{
    bench::{
        self, Extent,
        peers::{Peer, PeersPlan, run},
    },
    lab::is_privileged,
};

/// A sample fails if not every packet of it has taken the road that it is about.
#[test]
fn every_case_finds_its_road() {
    if !is_privileged() {
        return;
    }
    let extent = Extent { rounds: 1, packets: 10_000, only: None };
    let report = bench::run(&extent, &mut |_| {}).unwrap().to_string();
    for case in ["established/ipv6/ipip/1 ", "new/ipv4/l2 ", "answers/ipv4/nat/1 ", "pass "] {
        assert!(report.contains(case), "{case}: {report}");
    }
}

#[test]
fn each_balancer_that_is_compared_with_passes_everything_on() {
    if !is_privileged() {
        return;
    }
    let peers =
        vec![Peer::SluiceL2, Peer::NftDnat, Peer::NftDnatXdp, Peer::Haproxy, Peer::NginxStream];
    let plan = PeersPlan { peers: peers.clone(), rounds: 1, time: Duration::from_secs(1) };
    let report = run(&plan, &mut |_| {}).unwrap();
    for peer in peers {
        let figures = report.medians(peer).unwrap_or_else(|| panic!("{}: {report}", peer.name()));
        let all = [
            figures.new_connections_per_s,
            figures.requests_per_s,
            figures.gbit_per_s,
            figures.cpu_s_per_million_requests,
        ];
        assert!(all.iter().all(|figure| *figure > 0.0), "{report}");
    }
}
