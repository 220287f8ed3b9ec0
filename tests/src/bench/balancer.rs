//! Instances of Sluice to be measured: loaded and written as the daemon does it, in each of the
//! scenes that the cases play in.

use std::{collections::BTreeSet, iter, process};

use anyhow::{Context, Result, ensure};
use aya::programs::{ProgramFd, ProgramInfo};
use lb_common::{
    abi::Egress,
    address::Address,
    bench::{Answer, Plan},
    counters::Event,
    flow::State,
    forward::Forwarding,
    maglev::DEFAULT_SLOTS,
    parse::Family,
    reason::Reason,
    service::{Affinity, BackendState},
    wire::Tcp,
};
use lb_userspace::{
    datapath::{Datapath, FlowView, Pins, Sweep},
    instance::Instance,
    model::{ClientAddress, Dataplane, IcmpEcho, IdleTimeouts, PortRange, XdpMode},
    reconcile::{self, Image, Resolved, WantedBackend, WantedService},
    seed::Seed,
};
use zerocopy::FromZeros as _;

use super::{case::Sender, frame, generator::Generator, link::Link, ticks};

/// What an instance is asked to be, and what has happened to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scene {
    /// One service of 3 backends, and this many established flows in a table for twice as many.
    Ipv4(u32),
    /// The same over IPv6.
    Ipv6(u32),
    /// As `Ipv4`, with 500 services of 100 backends each.
    ManyServices(u32),
    /// One service of 3 backends, this many established flows that are translated, and a table for
    /// eight times as many.
    Translated(Family, u32),
    /// As `Translated`, IPv4, with 500 services of 100 backends each.
    ManyTranslated(u32),
    /// A table that SYNs have filled: every new one takes the place of another.
    FullOfSyns,
    /// The same with ACKs of flows nobody has seen the start of.
    FullOfAcks,
}

/// Entries of a table that is to be full: the default.
const FULL: u32 = lb_common::abi::capacity::FLOWS as u32;

/// Packets that fill each group of such a table for certain: the mean is 64, 16 are needed.
const FLOOD: u32 = 4 * FULL;

/// With some 30,000 ports each there is no lack of them.
const NAT_ADDRESSES: u8 = 8;

/// How often it is tried to open them all: one try in ten fails, because ports are drawn.
const TRIES: u32 = 8;

/// Smallest table.
const SMALLEST: u32 = 1024;

impl Scene {
    /// Services of each family.
    pub const fn services(self) -> u32 {
        match self {
            Self::ManyServices(_) | Self::ManyTranslated(_) => 500,
            _ => 1,
        }
    }

    const fn backends(self) -> u32 {
        match self {
            Self::ManyServices(_) | Self::ManyTranslated(_) => 100,
            _ => 3,
        }
    }

    const fn families(self) -> &'static [Family] {
        match self {
            Self::Ipv4(_)
            | Self::ManyServices(_)
            | Self::Translated(Family::Ipv4, _)
            | Self::ManyTranslated(_) => &[Family::Ipv4],
            Self::Ipv6(_) | Self::Translated(Family::Ipv6, _) => &[Family::Ipv6],
            Self::FullOfSyns | Self::FullOfAcks => &[Family::Ipv4, Family::Ipv6],
        }
    }

    /// How its services forward at first.
    const fn forwarding(self) -> Forwarding {
        match self {
            Self::Translated(..) | Self::ManyTranslated(_) => Forwarding::Nat,
            _ => Forwarding::L2,
        }
    }

    /// Entries of the flow table.
    pub fn capacity(self) -> u32 {
        match self {
            Self::Ipv4(flows) | Self::Ipv6(flows) | Self::ManyServices(flows) => {
                (2 * flows).max(SMALLEST)
            }
            Self::Translated(_, flows) | Self::ManyTranslated(flows) => (8 * flows).max(SMALLEST),
            Self::FullOfSyns | Self::FullOfAcks => FULL,
        }
    }
}

/// An instance, attached to nothing and pinned nowhere: it goes with the process.
pub struct Balancer {
    datapath: Datapath,
    program: ProgramFd,
    image: Image,
    services: Vec<WantedService>,
    forwarding: Forwarding,
    answers: Vec<Answer>,
}

impl Balancer {
    /// Sets the scene.
    pub fn play(scene: Scene, generator: &mut Generator, link: Link) -> Result<Self> {
        let mut balancer = Self::create(scene, link)?;
        match scene {
            Scene::Ipv4(flows) | Scene::Ipv6(flows) | Scene::ManyServices(flows) => {
                let family = scene.families()[0];
                let plan = frame::plan(family, scene.services(), Sender::Client);
                let plan = plan.in_order(flows.into());
                // Seen in more than one tick, they are old, as most flows are.
                let longer = balancer.longer()?;
                for (flags, longer) in [(Tcp::SYN, longer), (Tcp::ACK, longer), (Tcp::ACK, 0)] {
                    balancer.set_tick(longer);
                    balancer.feed(generator, plan, &frame::template(family, flags), flows)?;
                }
                balancer.ensure_old(flows)?;
            }
            Scene::Translated(_, flows) | Scene::ManyTranslated(flows) => {
                let mut tries = 1;
                while !balancer.translate(scene, generator, flows)? {
                    ensure!(tries < TRIES, "of {flows} flows some lack an entry each time");
                    tries += 1;
                    balancer = Self::create(scene, link)?;
                }
                balancer.ensure_old(flows)?;
            }
            Scene::FullOfSyns | Scene::FullOfAcks => {
                let syns = matches!(scene, Scene::FullOfSyns);
                let flags = if syns { Tcp::SYN } else { Tcp::ACK };
                let plan = frame::plan(Family::Ipv4, 1, Sender::Client).at_random();
                let template = frame::template(Family::Ipv4, flags);
                balancer.feed(generator, plan, &template, FLOOD)?;
                let state = if syns { State::Embryonic } else { State::Young };
                let used = balancer.sweep()?.by_state[state as usize - 1];
                // Flows of one tag in one group share an entry, which is older at the second's ACK.
                ensure!(
                    used >= FULL - FULL / 1000,
                    "of {FULL} entries {used} are {}",
                    state.name()
                );
            }
        }
        Ok(balancer)
    }

    /// Opens `flows` that are translated; tells whether all have both their entries. None may lack
    /// one, for the RST that it got would stay in the generator's frame.
    fn translate(&mut self, scene: Scene, generator: &mut Generator, flows: u32) -> Result<bool> {
        let family = scene.families()[0];
        let longer = self.longer()?;
        // Answers are found by the ticks that the daemon knows.
        for (sender, flags, longer) in [
            (Sender::TranslatedClient, Tcp::SYN, 0),
            (Sender::Backend, Tcp::SYN | Tcp::ACK, longer),
            (Sender::TranslatedClient, Tcp::ACK, longer),
            (Sender::TranslatedClient, Tcp::ACK, 0),
        ] {
            if sender == Sender::Backend {
                self.answers = self.find_answers(family, flows)?;
                if self.answers.iter().any(|answer| answer.port == [0; 2]) {
                    return Ok(false);
                }
                generator.set_answers(&self.answers)?;
            }
            self.set_tick(longer);
            let plan = frame::plan(family, scene.services(), sender).in_order(flows.into());
            self.feed(generator, plan, &frame::template(family, flags), flows)?;
        }
        Ok(self.tally()?.returned == u64::from(flows))
    }

    /// Whether all flows are there that have come, and old.
    fn ensure_old(&self, flows: u32) -> Result<()> {
        let Sweep { by_state, freed, .. } = self.sweep()?;
        let known = by_state[State::Old as usize - 1];
        // At a load of one half 0.05 % find no place (`lb_common::flow`).
        let wanted = flows - flows / 500;
        let what = || format!("{known} of {flows} flows are old: {by_state:?}, {freed} freed");
        ensure!(known >= wanted, "{}", what());
        Ok(())
    }

    /// Who answers each flow, and to which address and port.
    fn find_answers(&self, family: Family, flows: u32) -> Result<Vec<Answer>> {
        let mut answers = vec![Answer::new_zeroed(); flows as usize];
        let number = |address: Address| {
            let [.., c, d] = address.halves();
            // As the generator has put it there: behind an IPv4 address's first byte.
            if address.is_v4() { d >> 8 } else { c }
        };
        let first = number(frame::clients(family));
        let each = |flow: &FlowView| {
            let place = (number(flow.client.ip().into()) ^ first) as usize;
            let backend = self.image.backends.get(&flow.backend);
            if let (Some(answer), Some(backend), Some((seen, port))) =
                (answers.get_mut(place), backend, flow.nat)
                && let Some(seen) = self.image.nat_addresses.get(&seen)
            {
                let [.., backend] = backend.address.halves();
                let [.., seen] = Address::from(*seen).halves();
                let [_, seen]: [[u8; 2]; 2] = zerocopy::transmute!(seen);
                let backend = backend.to_ne_bytes();
                *answer = Answer { backend, seen, port: port.to_be_bytes() };
            }
            true
        };
        self.datapath.flow_table()?.each(|_| true, each);
        Ok(answers)
    }

    /// Of flows that are translated, by their numbers.
    pub fn answers(&self) -> &[Answer] {
        &self.answers
    }

    /// Every flow by the time-outs that hold for all.
    fn sweep(&self) -> Result<Sweep> {
        self.datapath.sweep(&self.datapath.idle_limits(iter::empty()))
    }

    fn create(scene: Scene, link: Link) -> Result<Self> {
        let instance: Instance = format!("bench-{}", process::id()).parse()?;
        let dataplane = Dataplane {
            interfaces: Vec::new(),
            xdp_mode: XdpMode::Native,
            flow_capacity: scene.capacity(),
            hash_seed: None,
            own_vips: false,
            tunnel_sources: Vec::new(),
            nat_ports: PortRange::NAT,
            longest_idle: IdleTimeouts::default(),
        };
        let seed = Seed::from_text("bench");
        let datapath = Datapath::create(&instance, &dataplane, &seed)?;
        let pins = Pins::of(&instance);
        let program = ProgramInfo::from_pin(pins.program("sluice"))
            .and_then(|info| info.fd())
            .context("open the program under test");
        pins.remove()?;

        let mut balancer = Self {
            datapath,
            program: program?,
            image: Image::default(),
            services: services(scene, link, &seed),
            forwarding: scene.forwarding(),
            answers: Vec::new(),
        };
        balancer.set_tick(0);
        balancer.write()?;
        Ok(balancer)
    }

    /// How much longer ticks shall be for what is met in them to be old thereafter.
    fn longer(&self) -> Result<u32> {
        ticks::longer(self.datapath.settings(), self.datapath.now()?)
            .context("the kernel's clock is about to wrap: try again in four minutes")
    }

    /// Counts ticks 2^`longer` times as long, so that the present one has another number.
    fn set_tick(&mut self, longer: u32) {
        let mut settings = *self.datapath.settings();
        settings.tick_shift += longer;
        // Nothing expires while it is measured: in life, packets and the sweep see to it.
        settings.idle_ticks = [u8::MAX; 8];
        self.datapath.maps.set_settings(&settings);
    }

    fn write(&mut self) -> Result<()> {
        let writes = reconcile::plan(&self.image, &self.services, &BTreeSet::new(), &())?;
        reconcile::apply(&writes, &mut self.datapath.maps, &mut self.image)
    }

    fn feed(
        &self,
        generator: &mut Generator,
        plan: Plan,
        template: &[u8],
        packets: u32,
    ) -> Result<()> {
        generator.aim_at_program(&self.program)?;
        generator.set_plan(&plan)?;
        // Whether they have become what they should the flow table tells.
        generator.run(template, packets).map(|_| ())
    }

    /// Changes how all services forward.
    pub fn forward(&mut self, forwarding: Forwarding) -> Result<()> {
        if self.forwarding != forwarding {
            self.forwarding = forwarding;
            for service in &mut self.services {
                service.forwarding = forwarding;
            }
            self.write()?;
        }
        Ok(())
    }

    /// The program under test.
    pub const fn program(&self) -> &ProgramFd {
        &self.program
    }

    /// What was counted so far.
    pub fn tally(&self) -> Result<Tally> {
        let backends: Vec<u16> = self.image.backends.keys().copied().collect();
        let mut tally = Tally::default();
        for counters in self.datapath.maps.counters(&backends)? {
            tally.forwarded += counters.traffic.packets;
            tally.returned += counters.traffic.return_packets;
            tally.new += counters.event(Event::NewFlow);
            tally.adopted += counters.event(Event::Adopted);
            tally.untracked += counters.event(Event::Untracked);
        }
        let reasons = self.datapath.maps.reason_counts()?;
        tally.not_vip = reasons[Reason::NotVip as usize];
        Ok(tally)
    }
}

/// What the balancer counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Packets forwarded to all backends together.
    pub forwarded: u64,
    /// Packets forwarded from them to clients.
    pub returned: u64,
    /// Flows that began with a SYN.
    pub new: u64,
    /// Flows that were met in the middle.
    pub adopted: u64,
    /// Those of both that found no place in the table.
    pub untracked: u64,
    /// Frames passed because they are for no VIP.
    pub not_vip: u64,
}

impl Tally {
    /// What came since `before`.
    pub const fn since(self, before: Self) -> Self {
        Self {
            forwarded: self.forwarded - before.forwarded,
            returned: self.returned - before.returned,
            new: self.new - before.new,
            adopted: self.adopted - before.adopted,
            untracked: self.untracked - before.untracked,
            not_vip: self.not_vip - before.not_vip,
        }
    }
}

fn services(scene: Scene, link: Link, seed: &Seed) -> Vec<WantedService> {
    let of_family = |&family: &Family| {
        (0..scene.services()).map(move |service| {
            let backend = |number| WantedBackend {
                address: frame::backend(family, service * scene.backends() + number),
                port: frame::PORT.to_be_bytes(),
                weight: 100,
                state: BackendState::Forward,
                hashes: seed.name_hashes(&format!("backend-{service}-{number}")),
                next_hop: Some(next_hop(link, number)),
            };
            WantedService {
                key: lb_common::abi::ServiceKey {
                    address: frame::vip(family, service),
                    port: frame::PORT.to_be_bytes(),
                    protocol: lb_common::wire::TCP,
                    reserved: [0; 5],
                },
                slots: DEFAULT_SLOTS,
                affinity: Affinity::None,
                mss_clamp: 0,
                icmp_echo: IcmpEcho::Always,
                forwarding: scene.forwarding(),
                client_address: ClientAddress::Replaced {
                    by: (0..NAT_ADDRESSES).map(|i| frame::nat_address(family, i).into()).collect(),
                },
                listed: true,
                backends: (0..scene.backends()).map(backend).collect(),
            }
        })
    };
    scene.families().iter().flat_map(of_family).collect()
}

/// Back where the frames come from, on a link that lets tunnels through.
fn next_hop(link: Link, number: u32) -> Resolved {
    let [.., c, d] = number.to_be_bytes();
    Resolved {
        mac: [2, 0, 0, 1, c, d],
        mtu: 1600,
        egress: Egress {
            ifindex: link.near,
            source_mac: [2, 0, 0, 0, 0, 1],
            source_v4: [198, 18, 0, 1],
            source_v6: Address::v6([0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
            ..Egress::default()
        },
        source: [198, 18, 0, 1].into(),
    }
}
