//! What a file would do to slots: made without the daemon's state, for it takes its time.

use std::{
    collections::{HashMap, HashSet},
    num::NonZero,
    thread,
};

use lb_common::{
    hash,
    maglev::{self, Member, Progress},
    service::Affinity,
};

use crate::{
    choice::choose,
    control::api,
    datapath::FlowView,
    health::Standings,
    model::{Desired, Identity, Service, Vip},
    seed::Seed,
};

/// A plan in the making.
pub struct Planning {
    pub(super) before: Desired,
    pub(super) after: Desired,
    pub(super) standings: Standings,
    pub(super) seed: Seed,
    pub(super) refused: Option<String>,
    pub(super) warnings: Vec<String>,
}

/// Maglev tables as they would be, by owner, of the services that would change.
pub struct Tables {
    by_vip: HashMap<Vip, Table>,
    /// VIPs that would be new: one may be at a port that another's of any port has had so far.
    begun: HashSet<Vip>,
}

struct Table {
    service: String,
    affinity: Affinity,
    /// By slot: a place in `backends`, from 1; 0 is nobody.
    owners: Vec<u16>,
    backends: Vec<Identity>,
    moved: u64,
}

impl Planning {
    /// The tables of the services that would change, made on all CPUs: some milliseconds each.
    pub fn tables(&self) -> Tables {
        let old: HashMap<_, _> = self.before.services.iter().map(|s| (s.vip, s)).collect();
        let changed: Vec<(&Service, &Service)> = self
            .after
            .services
            .iter()
            .filter(|service| !service.leaving)
            .filter_map(|service| Some((*old.get(&service.vip)?, service)))
            .filter(|(was, is)| was != is)
            .collect();
        let cpus = thread::available_parallelism().map_or(1, NonZero::get);
        let part = changed.len().div_ceil(cpus).max(1);
        let by_vip = thread::scope(|scope| {
            let make = |part: &[(&Service, &Service)]| -> Vec<_> {
                part.iter().map(|(was, is)| (is.vip, self.table(was, is))).collect()
            };
            let parts: Vec<_> =
                changed.chunks(part).map(|part| scope.spawn(move || make(part))).collect();
            let joined = parts.into_iter().map(|part| match part.join() {
                Ok(tables) => tables,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            joined.flatten().collect()
        });
        let begun = self.after.services.iter().map(|service| service.vip);
        let begun = begun.filter(|vip| !old.contains_key(vip)).collect();
        Tables { by_vip, begun }
    }

    fn table(&self, was: &Service, is: &Service) -> Table {
        let mut backends = Vec::new();
        let before = self.owners(was, &mut backends);
        let owners = self.owners(is, &mut backends);
        let differ = |slot: &usize| before.get(*slot) != owners.get(*slot);
        Table {
            service: is.name.clone(),
            affinity: is.affinity,
            moved: (0..owners.len()).filter(differ).count() as u64,
            owners,
            backends,
        }
    }

    /// Who would have each slot, as a place in `backends`, from 1.
    fn owners(&self, service: &Service, backends: &mut Vec<Identity>) -> Vec<u16> {
        let takes = choose(service, |backend| self.standings.condition(service, backend)).takes;
        let taking = service.backends.iter().zip(takes).filter(|(_, takes)| *takes);
        let members: Vec<Member> = taking
            .map(|(backend, _)| {
                let identity = service.identity(backend);
                let place = backends.iter().position(|known| *known == identity);
                let place = place.unwrap_or_else(|| {
                    backends.push(identity);
                    backends.len() - 1
                });
                Member {
                    backend: place as u16 + 1,
                    weight: backend.weight,
                    hashes: self.seed.name_hashes(&backend.name),
                }
            })
            .collect();
        let mut slots = vec![0; service.slots as usize];
        maglev::fill(&members, &mut slots, &mut vec![Progress::default(); members.len()]);
        slots
    }
}

impl Table {
    fn owner(&self, slot: u32) -> Option<Identity> {
        let place = *self.owners.get(slot as usize)?;
        self.backends.get(usize::from(place).wrapping_sub(1)).copied()
    }
}

impl Tables {
    pub(super) fn moved(&self) -> Vec<api::PlannedSlots> {
        let changed = self.by_vip.values().filter(|table| table.moved > 0);
        let mut slots: Vec<_> = changed
            .map(|table| api::PlannedSlots {
                service: table.service.clone(),
                moved: table.moved,
                slots: table.owners.len() as u64,
            })
            .collect();
        slots.sort_by(|a, b| a.service.cmp(&b.service));
        slots
    }

    /// Whether a flow would get another backend if nobody knew it.
    pub(super) fn moves(&self, owner: Identity, flow: &FlowView, keys: &[u64; hash::KEYS]) -> bool {
        let (vip, _) = owner;
        if vip.port().is_none() && self.begun.contains(&vip.at(flow.vip_port).into()) {
            return true;
        }
        let Some(table) = self.by_vip.get(&vip) else { return false };
        let hash = match table.affinity {
            Affinity::None => flow.hash(vip.ip(), keys),
            Affinity::SourceIp => hash::of_client(flow.client.ip().into(), keys),
        };
        let slot = maglev::slot_of(hash, table.owners.len() as u32);
        table.owner(slot) != Some(owner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::{config, drain::Admin, model::sample};

    fn planning(change: impl Fn(&mut Service)) -> Planning {
        let text = "[dataplane]\ninterfaces = [\"eth0\"]\n";
        let mut before = config::parse(text, "lb.toml").expect("valid");
        before.services = vec![sample::service("web", 4)];
        let mut after = before.clone();
        change(&mut after.services[0]);
        Planning {
            before,
            after,
            standings: Standings::default(),
            seed: Seed::from_text("always the same"),
            refused: None,
            warnings: Vec::new(),
        }
    }

    #[test]
    fn a_plan_knows_which_slots_would_move() {
        assert_eq!(planning(|_| ()).tables().moved(), []);
        let fewer = planning(|service| service.backends[3].admin = Admin::Disabled);
        let moved = &fewer.tables().moved()[0];
        let share = moved.moved as f64 / moved.slots as f64;
        assert!((0.24..0.36).contains(&share), "{moved:?}");
    }

    #[test]
    fn a_plan_knows_whose_flows_are_at_a_port_that_gets_a_service_of_its_own() {
        let mut planning = planning(|_| ());
        let any = Vip::any_port([203, 0, 113, 10].into());
        planning.before.services[0].vip = any;
        planning.after.services[0].vip = any;
        planning.after.services.push(sample::service("own", 1));
        let service = &planning.after.services[0];
        let (tables, keys) = (planning.tables(), planning.seed.hash_keys());
        let at = |port| FlowView {
            client: SocketAddr::from(([198, 51, 100, 7], 40_000)),
            vip_port: port,
            nat: None,
            backend: 1,
            state: lb_common::flow::State::Old,
            age_seconds: 1.0,
            idle_seconds: 0.0,
        };
        let owner = service.identity(&service.backends[0]);
        assert!(tables.moves(owner, &at(80), &keys));
        assert!(!tables.moves(owner, &at(81), &keys));
        planning.before = planning.after.clone();
        assert!(!planning.tables().moves(owner, &at(80), &keys));
    }

    #[test]
    fn a_plan_knows_which_flows_only_the_table_holds() {
        let fewer = planning(|service| service.backends[3].admin = Admin::Disabled);
        let service = &fewer.before.services[0];
        let (whole, tables) = (fewer.table(service, service), fewer.tables());
        let keys = fewer.seed.hash_keys();
        let vip = fewer.before.services[0].vip;
        let mut moved = 0;
        for port in 1..=2000 {
            let client = SocketAddr::new([198, 51, 100, 7].into(), port);
            let flow = FlowView {
                client,
                vip_port: 80,
                nat: None,
                backend: 1,
                state: lb_common::flow::State::Old,
                age_seconds: 1.0,
                idle_seconds: 0.0,
            };
            let slot = maglev::slot_of(flow.hash(vip.ip(), &keys), service.slots);
            let owner = whole.owner(slot).expect("somebody");
            moved += u32::from(tables.moves(owner, &flow, &keys));
        }
        assert!((480..720).contains(&moved), "{moved} of 2000");
    }
}
