//! Gathers from the daemon's state what troubles are told from.

use std::{collections::BTreeMap, time::Instant};

use lb_common::flow;

use super::{Facts, Front, Member, Pool, of_instance, troubles};
use crate::{
    choice::choose,
    control::api::{NatPorts, Severity, Trouble, TroubleKind},
    doctor::{CLIENT_MTU, Narrow, narrow},
    drain::Moment,
    health::Seen,
    model::{Identity, Service},
    network::Interface,
    observe::State,
};

impl State {
    /// Notes since when what is wrong now is so.
    pub fn look_for_troubles(&mut self) {
        let seen = self.probes.as_ref().map(|probes| probes.snapshot()).unwrap_or_default();
        let troubles = self.undated(&seen, None);
        self.onsets.look(&troubles, Moment::now());
    }

    /// What is wrong, the worst first; `seen` is what the probes have come to, `unread` why the
    /// counters can't be read, if they can't.
    pub(in crate::observe) fn troubles(
        &self,
        seen: &BTreeMap<Identity, Seen>,
        unread: Option<&str>,
    ) -> Vec<Trouble> {
        let mut troubles = self.undated(seen, unread);
        self.onsets.date(&mut troubles, Moment::now());
        troubles
    }

    fn undated(&self, seen: &BTreeMap<Identity, Seen>, unread: Option<&str>) -> Vec<Trouble> {
        let interfaces = self.interfaces.iter().map(|interface| Front {
            name: &interface.name,
            is_attached: interface.xdp().is_some_and(|xdp| self.datapath.is_ours(xdp.id)),
            fault: interface.found.as_ref().and_then(Interface::fault),
        });
        let ports = self.nat_ports_used();
        let of_state = |state| {
            let place = flow::State::ALL.iter().position(|listed| *listed == state);
            place.map_or(0, |place| self.sweep.by_state[place])
        };
        troubles(Facts {
            interfaces: interfaces.collect(),
            pools: self.desired.services.iter().map(|s| self.pool(s, seen, &ports)).collect(),
            flows_used: self.sweep.used(),
            flows_embryonic: of_state(flow::State::Embryonic),
            flows: self.sweep.by_state.iter().sum(),
            flow_capacity: self.datapath.flow_capacity(),
            losses: self.losses.present(Instant::now()).collect(),
            own: self.own_troubles(unread),
        })
    }

    /// Ports of this host that flows take, by whose flows they are.
    fn nat_ports_used(&self) -> BTreeMap<Identity, u64> {
        let mut used = BTreeMap::new();
        for ((backend, _), ports) in &self.sweep.nat_ports {
            if let Some(identity) = self.identity(*backend) {
                *used.entry(identity).or_default() += u64::from(*ports);
            }
        }
        used
    }

    /// Those taken towards a backend of a service, and those to be had from the addresses that it
    /// has now; `None`: its flows take none.
    pub(in crate::observe) fn nat_ports_for(
        &self,
        service: &Service,
        used: u64,
    ) -> Option<NatPorts> {
        let addresses = service.client_address.named().len().max(1) as u64;
        let capacity = addresses * u64::from(self.nat_ports().count());
        service.replaces_clients().then_some(NatPorts { used, capacity })
    }

    fn pool<'f>(
        &'f self,
        service: &'f Service,
        seen: &'f BTreeMap<Identity, Seen>,
        ports: &BTreeMap<Identity, u64>,
    ) -> Pool<'f> {
        let members = service.backends.iter().map(|backend| {
            let identity = service.identity(backend);
            Member {
                standing: self.judge.standings().of(service, backend),
                seen: seen.get(&identity),
                is_suspect: self.traffic_of(&identity).is_suspect,
                is_outlier: self.stands_out(&identity),
                nat_ports: self
                    .nat_ports_for(service, ports.get(&identity).copied().unwrap_or_default()),
                given_mac: self
                    .next_hops
                    .get(&backend.address)
                    .and_then(|hop| hop.as_ref().ok()?.given_mac(backend.address)),
            }
        });
        Pool {
            service,
            tier: choose(service, |backend| self.condition(service, backend)).tier,
            hold: self.judge.hold(service),
            narrow: self.narrowest(service),
            members: members.collect(),
        }
    }

    /// The narrowest way to a backend of a service into which clients' packets do not fit.
    fn narrowest<'f>(&self, service: &'f Service) -> Option<(&'f str, Narrow)> {
        let client_mtu = self.client_mtu().map_or(CLIENT_MTU, |mtu| CLIENT_MTU.min(mtu.into()));
        let backends = service.backends.iter().filter_map(|backend| {
            let hop = self.next_hops.get(&backend.address)?.as_ref().ok()?;
            Some((&*backend.name, narrow(service, backend, hop, client_mtu)?))
        });
        backends.min_by_key(|(_, narrow)| narrow.room)
    }

    /// What went wrong in the daemon itself.
    fn own_troubles(&self, unread: Option<&str>) -> Vec<Trouble> {
        use Severity::{Fault, Outage};
        let doctor = Some("`sluice doctor` looks closer; the daemon tries again all the time");
        let disk = Some("make room on the disk, or mount it writable; it is tried again by itself");
        let reload = Some("mend the file, see `sluice check`, and send SIGHUP again");
        let log = Some("see the daemon's log");
        let host = self.desired.host_clash(&self.host_addresses);
        let maps =
            self.reconcile_error.as_ref().map(|e| format!("the maps are not as wanted: {e}"));
        let found = [
            (Outage, TroubleKind::Maps, maps, doctor),
            (Outage, TroubleKind::NotAttached, self.attach_error.clone(), None),
            (Fault, TroubleKind::Disk, self.keep_error.clone(), disk),
            (Fault, TroubleKind::Disk, self.journal.error(), disk),
            (Fault, TroubleKind::Disk, self.recording.error(), disk),
            (Fault, TroubleKind::Config, self.reload_error.clone(), reload),
            (Fault, TroubleKind::HostAddress, host.map(|clash| clash.to_string()), None),
            (Fault, TroubleKind::Note, unread.map(str::to_owned), log),
        ];
        let found = found.into_iter().filter_map(|(severity, kind, says, mend)| {
            Some(of_instance(severity, kind, says?, mend.map(str::to_owned)))
        });
        let not_forwarded = self.not_forwarded.iter().map(|says| {
            of_instance(Outage, TroubleKind::NotForwarded, says.clone(), doctor.map(str::to_owned))
        });
        let notes =
            self.notes.iter().map(|says| of_instance(Fault, TroubleKind::Note, says.clone(), None));
        found.chain(not_forwarded).chain(notes).collect()
    }
}
