//! The table, and the line for a script.

use std::fmt;

use serde::{Serialize, Serializer};

use super::{Peer, PeersPlan};
use crate::bench::Machine;

/// What one sample came to, or the median of several.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Connections that were opened, asked one thing, and closed, in a second.
    pub new_connections_per_s: f64,
    /// Answered in a second over connections that stay.
    pub requests_per_s: f64,
    /// TCP payload from the client to one backend.
    pub gbit_per_s: f64,
    /// Of the whole machine while those requests ran, client and servers too.
    pub cpu_s_per_million_requests: f64,
}

/// A figure's title, its place, and how many digits it is told with.
type Column = (&'static str, fn(&Figures) -> f64, usize);

/// A machine whose other programs keep more CPUs busy than this is not quiet.
const QUIET: f64 = 0.1;

const COLUMNS: [Column; 4] = [
    ("new conn/s", |figures| figures.new_connections_per_s, 0),
    ("requests/s", |figures| figures.requests_per_s, 0),
    ("Gbit/s", |figures| figures.gbit_per_s, 2),
    ("CPU s/1M req", |figures| figures.cpu_s_per_million_requests, 1),
];

/// What was measured; serialised, it is `{"peers":{"direct":{…},…}}` and nothing else, with `null`
/// for who was left out.
#[derive(Clone, Debug)]
pub struct PeersReport {
    machine: Machine,
    rounds: usize,
    seconds: u64,
    /// CPUs that other programs kept busy before or after, whichever was more.
    pub(super) others: f64,
    peers: Vec<(Peer, Samples)>,
}

#[derive(Clone, Debug)]
enum Samples {
    Taken(Vec<Figures>),
    LeftOut(String),
}

impl PeersReport {
    pub(super) fn new(machine: Machine, plan: &PeersPlan) -> Self {
        let peers = plan.peers.iter().map(|peer| (*peer, Samples::Taken(Vec::new()))).collect();
        Self { machine, rounds: plan.rounds, seconds: plan.time.as_secs(), others: 0.0, peers }
    }

    /// Who is not left out.
    pub(super) fn measured(&self) -> Vec<Peer> {
        let taken = self.peers.iter().filter(|(_, samples)| matches!(samples, Samples::Taken(_)));
        taken.map(|(peer, _)| *peer).collect()
    }

    pub(super) fn leave_out(&mut self, peer: Peer, why: &str) {
        if let Some(samples) = self.samples(peer) {
            *samples = Samples::LeftOut(why.to_owned());
        }
    }

    pub(super) fn add(&mut self, peer: Peer, figures: Figures) {
        if let Some(Samples::Taken(taken)) = self.samples(peer) {
            taken.push(figures);
        }
    }

    fn samples(&mut self, peer: Peer) -> Option<&mut Samples> {
        let (_, samples) = self.peers.iter_mut().find(|(other, _)| *other == peer)?;
        Some(samples)
    }

    /// The medians of one; `None` if it was left out.
    pub fn medians(&self, peer: Peer) -> Option<Figures> {
        let (_, samples) = self.peers.iter().find(|(other, _)| *other == peer)?;
        match samples {
            Samples::Taken(taken) if !taken.is_empty() => Some(medians(taken)),
            Samples::Taken(_) | Samples::LeftOut(_) => None,
        }
    }
}

fn medians(taken: &[Figures]) -> Figures {
    let median = |(_, figure, digits): Column| {
        let mut values: Vec<f64> = taken.iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        let digit = 10f64.powi(digits as i32);
        (values[values.len() / 2] * digit).round() / digit
    };
    let [new_connections_per_s, requests_per_s, gbit_per_s, cpu_s_per_million_requests] =
        COLUMNS.map(median);
    Figures { new_connections_per_s, requests_per_s, gbit_per_s, cpu_s_per_million_requests }
}

/// How far apart the samples of a figure lie, as a share of their median: the worst of them.
fn spread(taken: &[Figures]) -> f64 {
    let middle = medians(taken);
    let spreads = COLUMNS.map(|(_, figure, _)| {
        let values = taken.iter().map(figure);
        let range = values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
        (range.1 - range.0) / figure(&middle)
    });
    spreads.into_iter().fold(0.0, f64::max)
}

impl Serialize for PeersReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Peers<'r>(&'r PeersReport);
        impl Serialize for Peers<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let peers = self.0.peers.iter().map(|(peer, _)| *peer);
                serializer.collect_map(peers.map(|peer| (peer.name(), self.0.medians(peer))))
            }
        }
        serializer.collect_map([("peers", Peers(self))])
    }
}

impl fmt::Display for PeersReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, rounds, seconds, others, .. } = self;
        writeln!(f, "{}, Linux {}, commit {}", machine.cpu, machine.kernel, machine.commit)?;
        writeln!(
            f,
            "medians of {rounds}, {seconds} s for each figure; other programs: {others:.2} CPUs{}\n",
            if *others > QUIET { ": NOT QUIET, so all of this is rough" } else { "" }
        )?;
        write!(f, "{:<14}", "")?;
        for (title, ..) in COLUMNS {
            write!(f, "{title:>14}")?;
        }
        writeln!(f, "{:>10}", "spread")?;
        for (peer, samples) in &self.peers {
            write!(f, "{:<14}", peer.name())?;
            match samples {
                Samples::LeftOut(why) => writeln!(f, "  left out: {why}")?,
                Samples::Taken(taken) => {
                    let middle = medians(taken);
                    for (_, figure, digits) in COLUMNS {
                        write!(f, "{:>14.digits$}", figure(&middle))?;
                    }
                    writeln!(f, "{:>8.0} %", spread(taken) * 100.0)?;
                }
            }
        }
        writeln!(f)?;
        for sluice in [Peer::SluiceL2, Peer::SluiceIpip, Peer::SluiceNat] {
            if let Some(goal) = self.goal(sluice) {
                writeln!(f, "{goal}")?;
            }
        }
        write!(f, "\n{HONESTLY}")
    }
}

impl PeersReport {
    /// Whether this one is ahead of the others in new connections, and in CPU time per request.
    fn goal(&self, sluice: Peer) -> Option<String> {
        let own = self.medians(sluice)?;
        let rivals = [Peer::NftDnat, Peer::Haproxy, Peer::NginxStream];
        let mut rivals = rivals.into_iter().filter_map(|r| Some((r.name(), self.medians(r)?)));
        let behind = rivals.by_ref().flat_map(|(name, rival)| {
            let opens = own.new_connections_per_s <= rival.new_connections_per_s;
            let costs = own.cpu_s_per_million_requests >= rival.cpu_s_per_million_requests;
            let what = [(opens, "new connections"), (costs, "CPU per request")];
            what.into_iter().filter(|(is, _)| *is).map(move |(_, what)| format!("{name} in {what}"))
        });
        let behind: Vec<String> = behind.collect();
        let name = sluice.name();
        Some(if behind.is_empty() {
            format!("{name}: ahead of all rivals in new connections and in CPU per request")
        } else {
            format!("{name}: MISSED the goal, behind {}", behind.join(", "))
        })
    }
}

/// What the figures are worth.
const HONESTLY: &str = "\
What this laboratory favours, and whom:
- Client, balancer and backends share the CPUs, which are always busy: requests and connections a
  second tell what the whole machine works for each, and `direct` is the best that can be. What a
  balancer costs is its distance from `direct`, which a machine of its own would show undiluted.
- CPU seconds are the whole machine's while requests/s was measured, client, servers and other
  programs included, with nothing subtracted: softirqs, where XDP and netfilter work, belong to no
  process. As no CPU is ever idle then, they are little more than the inverse of requests/s.
- Network cards are veths, with checksum and segmentation offloads off, as no offload of a card
  would undo what XDP has rewritten on a veth. That is against HAProxy, nginx and nftables: on a real
  card they handle segments of up to 64 KiB at once (TSO, GRO), and Gbit/s would be several times
  as many. XDP handles each frame by itself on any card.
- Before XDP runs on a veth, the kernel copies each of TCP's frames to a page of its own, and what
  is sent back needs another XDP program on the far end. Cards' drivers do neither: that is against
  Sluice. The others run without any XDP program, but for `nft-dnat-xdp`: nftables where programs
  stand in the same places and pass every frame. What it loses to `nft-dnat` is what veths take.
- With `l2` and `ipip` answers go from the backend to the client directly, which is their point;
  requests are small and answers too. Data goes from client to backend, so that every byte crosses
  every balancer; downloads would cost the balancer in these two modes next to nothing. `ipip`
  includes its tunnel's opening on the backends.
- HAProxy and nginx end the client's connection and open another: they could do more than balance
  (retry, TLS, inspect), and are not asked to. nftables runs without a flow table in software.
";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn figures(new: f64, cpu: f64) -> Figures {
        Figures {
            new_connections_per_s: new,
            requests_per_s: 30_000.4,
            gbit_per_s: 1.239,
            cpu_s_per_million_requests: cpu,
        }
    }

    fn report(peers: &[Peer]) -> PeersReport {
        let time = Duration::from_secs(1);
        let plan = PeersPlan { peers: peers.to_vec(), rounds: 3, time };
        PeersReport::new(Machine::here(), &plan)
    }

    #[test]
    fn the_line_for_a_script_holds_medians_and_null_for_who_is_left_out() {
        let mut report = report(&[Peer::SluiceL2, Peer::SluiceNat]);
        for (new, cpu) in [(900.0, 70.0), (1000.0, 60.0), (5000.0, 61.26)] {
            report.add(Peer::SluiceL2, figures(new, cpu));
        }
        report.leave_out(Peer::SluiceNat, "no such mode");
        assert_eq!(report.measured(), [Peer::SluiceL2]);
        assert_eq!(
            serde_json::to_string(&report).expect("it is JSON"),
            r#"{"peers":{"sluice-l2":{"new_connections_per_s":1000.0,"requests_per_s":30000.0,"gbit_per_s":1.24,"cpu_s_per_million_requests":61.3},"sluice-nat":null}}"#
        );
        let text = report.to_string();
        assert!(text.contains("sluice-nat      left out: no such mode\n"), "{text}");
        assert!(text.contains("410 %"), "{text}");
    }

    #[test]
    fn a_missed_goal_is_told_with_who_is_ahead() {
        let mut report = report(&Peer::ALL);
        report.add(Peer::SluiceL2, figures(1000.0, 60.0));
        report.add(Peer::Haproxy, figures(900.0, 70.0));
        let ahead = "sluice-l2: ahead of all rivals in new connections and in CPU per request";
        assert_eq!(report.goal(Peer::SluiceL2).as_deref(), Some(ahead));
        report.add(Peer::NftDnat, figures(1100.0, 60.0));
        let behind = "sluice-l2: MISSED the goal, behind nft-dnat in new connections, \
                      nft-dnat in CPU per request";
        assert_eq!(report.goal(Peer::SluiceL2).as_deref(), Some(behind));
        assert_eq!(report.goal(Peer::SluiceIpip), None);
    }
}
