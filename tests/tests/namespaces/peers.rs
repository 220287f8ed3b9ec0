//! `cargo xtask bench peers`: what Sluice is compared with works. The figures are the bench's affair.

use std::time::Duration;

use sluice_tests::{
    bench::peers::{Peer, PeersPlan, run},
    lab::is_privileged,
};

#[test]
fn each_balancer_that_is_compared_with_passes_everything_on() {
    if !is_privileged() {
        return;
    }
    let peers = vec![Peer::SluiceL2, Peer::NftDnat, Peer::Haproxy, Peer::NginxStream];
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
