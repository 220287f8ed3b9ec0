//! `sluice explain`: one segment's way through the program, step by step.

use std::net::SocketAddr;

use clap::{Args, CommandFactory as _, error::ErrorKind};
use lb_common::flow::GROUP;

use super::{
    Cli, Output,
    figures::{exact, seconds},
    table::{Palette, Tone},
};
use crate::{
    control::{api, client::Client},
    explain::{self, Ask, Becomes, Check, Explanation, Kind, Member, Standing},
    headers::{Headers, flag_names},
    instance::Instance,
};

/// Which segment.
#[derive(Args)]
pub struct Arguments {
    /// Who connects, such as 198.51.100.7:40001 or [2001:db8::7]:40001
    #[arg(value_name = "CLIENT:PORT", value_parser = endpoint)]
    client: SocketAddr,
    /// To whom
    #[arg(value_name = "VIP:PORT", value_parser = endpoint)]
    vip: SocketAddr,
    /// A SYN, whether the flow is known or not
    #[arg(long, conflicts_with = "ack")]
    syn: bool,
    /// An ACK, whether the flow is known or not
    #[arg(long)]
    ack: bool,
    /// Arriving on this interface, not on the first; VLAN tags decide nothing
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    #[command(flatten)]
    output: Output,
}

/// An address and a port that TCP can have.
fn endpoint(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| "no address and port, such as 203.0.113.10:80 or [2001:db8::10]:80")?;
    if address.port() == 0 {
        return Err("nobody has port 0".to_owned());
    }
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// Explains, and prints.
pub async fn execute(
    client: &Client,
    instance: &Instance,
    arguments: &Arguments,
) -> anyhow::Result<()> {
    let ask = arguments.ask().unwrap_or_else(|error| error.exit());
    let explanation = explain::explain(client, instance, &ask).await?;
    arguments.output.print(&explanation, render)
}

impl Arguments {
    /// What is asked, if client and VIP can talk to each other.
    fn ask(&self) -> Result<Ask, clap::Error> {
        let Self { client, vip, syn, ack, .. } = *self;
        if client.is_ipv4() != vip.is_ipv4() {
            let says = format!("{client} and {vip} are of two families: no packet has both");
            return Err(Cli::command().error(ErrorKind::ValueValidation, says));
        }
        let kind = match (syn, ack) {
            (true, _) => Some(Kind::Syn),
            (_, true) => Some(Kind::Ack),
            (false, false) => None,
        };
        Ok(Ask { client, vip, kind, interface: self.interface.clone() })
    }
}

/// One step: what is looked at, and what is found.
struct Step {
    title: &'static str,
    tone: Tone,
    found: Vec<String>,
}

impl Step {
    fn new(title: &'static str, found: impl Into<String>) -> Self {
        Self { title, tone: Tone::Plain, found: vec![found.into()] }
    }

    fn toned(self, tone: Tone) -> Self {
        Self { tone, ..self }
    }

    fn and(mut self, more: impl IntoIterator<Item = String>) -> Self {
        self.found.extend(more);
        self
    }
}

fn render(explanation: &Explanation, palette: Palette) -> String {
    let mut text = String::from(
        "This binary's copy of the kernel program's code decides on the live maps; nothing is sent, \
         written or counted.\n\n",
    );
    for (number, step) in (1..).zip(steps(explanation)) {
        let mut found = step.found.iter();
        let first = found.next().map_or("", String::as_str);
        let first = palette.paint(step.tone, first);
        text += &format!("{number:2}  {:<12}{first}\n", step.title);
        for more in found {
            text += &format!("{:16}{more}\n", "");
        }
    }
    text
}

fn steps(explanation: &Explanation) -> Vec<Step> {
    let decision = &explanation.decision;
    let told = explanation.daemon.as_ref();
    let sent = &decision.segment;
    let family = if sent.vip.is_ipv4() { "IPv4" } else { "IPv6" };
    let kind = match sent.kind {
        Kind::Syn => "SYN",
        Kind::Ack => "ACK",
    };
    let mut steps = vec![
        Step::new(
            "parsed as",
            format!(
                "{family} TCP {kind} {} -> {}, {} bytes, arriving on {}",
                sent.client, sent.vip, sent.bytes, explanation.arrives_on
            ),
        ),
        filter(explanation),
    ];
    if decision.filter.lets_through {
        steps.push(flow(explanation));
        steps.push(service(explanation));
    }
    if let Some(slot) = &decision.slot {
        let backend = match slot.backend {
            0 => "nobody has it".to_owned(),
            index => called(told.and_then(|told| told.slot_backend.as_ref()), index),
        };
        let slots = decision.service.as_ref().map_or(0, |service| service.slots);
        let known = decision.flow.as_ref().is_some_and(|f| f.standing == Standing::Known);
        let asked = if known { " (not asked: the flow is known)" } else { "" };
        let number = exact(u64::from(slot.slot));
        let of = exact(u64::from(slots));
        steps.push(Step::new(
            "slot",
            format!("{number} of {of}, by hash {}: {backend}{asked}", slot.hash),
        ));
    }
    if decision.backend.is_some() {
        steps.push(backend(explanation));
        steps.push(next_hop(explanation));
    }
    if let Some(headers) = &decision.leaves {
        steps.push(leaves(headers));
    }
    steps.push(verdict(explanation));
    steps.push(remembered(explanation));
    steps.push(check(&explanation.check));
    steps
}

fn filter(explanation: &Explanation) -> Step {
    let vip = explanation.decision.segment.vip.ip();
    let filter = explanation.decision.filter;
    let found = match (filter.lets_through, filter.is_vip) {
        (_, true) => format!("let through: {vip} is a VIP"),
        (true, false) => format!(
            "let through, though {vip} is no VIP: it shares a bit with one, \
                                  or is a NAT address"
        ),
        (false, false) => format!("not let through: {vip} is no VIP"),
    };
    Step::new("VIP filter", found).toned(if filter.is_vip { Tone::Plain } else { Tone::Doubtful })
}

fn service(explanation: &Explanation) -> Step {
    let vip = explanation.decision.segment.vip;
    let Some(service) = &explanation.decision.service else {
        return Step::new("service", format!("none has {vip} for new flows")).toned(Tone::Doubtful);
    };
    let name = explanation.daemon.as_ref().and_then(|told| told.service.clone());
    let name = name.unwrap_or_else(|| format!("number {}", service.index));
    let slots = exact(u64::from(service.slots));
    let mss = service.mss_clamp.map(|most| format!(", MSS of {most} at most")).unwrap_or_default();
    Step::new("service", format!("{name}: {slots} slots, affinity {}{mss}", service.affinity))
}

fn flow(explanation: &Explanation) -> Step {
    let decision = &explanation.decision;
    let Some(flow) = &decision.flow else {
        let taken = decision.group_taken;
        return Step::new(
            "flow",
            format!("not known ({taken} of {GROUP} places of its group are taken)"),
        );
    };
    let told = explanation.daemon.as_ref();
    let backend = called(told.and_then(|told| told.flow_backend.as_ref()), flow.backend);
    let heard = format!("silent for {}", seconds(flow.idle_seconds as u64));
    let age = match flow.age_seconds {
        Some(age) => format!("begun {} ago, {heard}", seconds(age as u64)),
        None => heard,
    };
    let word = exact(flow.word.into());
    let entry = format!("at {backend}, state {}, {age}, word {word}", flow.state);
    let (tone, found) = match flow.standing {
        Standing::Known => (Tone::Plain, format!("known, {entry}")),
        Standing::Expired => (Tone::Plain, format!("expired, so it does not bind: {entry}")),
        Standing::BackendGone => {
            (Tone::Bad, format!("known, but its backend's flows are reset: {entry}"))
        }
        Standing::BackendAbsent => {
            (Tone::Doubtful, format!("its backend was removed, so it does not bind: {entry}"))
        }
        Standing::Stranger => (
            Tone::Doubtful,
            format!("not known; another service's flow has its fingerprint: {entry}"),
        ),
    };
    let seen = flow.client_at_backend.map(|seen| format!("its backend sees {seen} for the client"));
    Step::new("flow", found).toned(tone).and(seen)
}

fn backend(explanation: &Explanation) -> Step {
    let told = explanation.daemon.as_ref();
    let Some(backend) = &explanation.decision.backend else {
        return Step::new("backend", "none");
    };
    let member = told.and_then(|told| told.backend.as_ref());
    let name = called(member.map(|member| &member.name), backend.index);
    let sees = match (backend.forwarding, backend.sees) {
        ("nat", "client") => ", which sees its clients' addresses",
        ("nat", "own") => ", which sees this host's address",
        ("nat", _) => ", which sees the service's nat_addresses",
        _ => "",
    };
    let found = format!("{name} at {}, by {}{sees}", backend.address, backend.forwarding);
    let (tone, state) = match backend.state {
        "forward" => (Tone::Plain, "the program forwards its flows"),
        "suspect" => {
            (Tone::Doubtful, "it answers nobody: SYNs sent again go to another, where they may")
        }
        "reset" => (Tone::Bad, "the program resets its flows"),
        _ => (Tone::Bad, "the program does not know it any more"),
    };
    let eligible = match member {
        None if told.is_none() => "no daemon answers: its health is not known".to_owned(),
        None => "the daemon does not know it any more".to_owned(),
        Some(member) => eligible(member),
    };
    let others = told.map_or(&[][..], |told| &told.without_new_flows);
    Step::new("backend", found)
        .toned(tone)
        .and([format!("{eligible}; {state}")])
        .and(without(others, member))
}

/// Whether it takes new flows, and why.
fn eligible(member: &Member) -> String {
    let api::Admin::Enabled = member.admin else {
        let takes = if member.takes_new_flows { "takes" } else { "keeps its flows, takes no" };
        return format!("{takes} new flows: {}", member.why);
    };
    match member.takes_new_flows {
        true => format!("takes new flows: {}", member.why),
        false => format!("takes no new flows: {} ({})", member.why, health(member.health)),
    }
}

const fn health(health: api::Health) -> &'static str {
    match health {
        api::Health::Unknown => "unknown",
        api::Health::Healthy => "healthy",
        api::Health::Unhealthy => "unhealthy",
        api::Health::Unreachable => "unreachable",
    }
}

/// The other backends, that take no new flows: some of them.
fn without(idle: &[Member], but: Option<&Member>) -> Option<String> {
    const SHOWN: usize = 4;
    let others: Vec<&Member> = idle.iter().filter(|member| Some(*member) != but).collect();
    let mut list: Vec<String> = others
        .iter()
        .take(SHOWN)
        // What mends it comes behind the semicolon, and is the daemon's to tell.
        .map(|member| (&member.name, member.why.split("; ").next().unwrap_or_default()))
        .map(|(name, why)| format!("{name} ({why})"))
        .collect();
    if others.len() > SHOWN {
        list.push(format!("{} more", others.len() - SHOWN));
    }
    (!list.is_empty()).then(|| format!("not for new flows: {}", list.join(", ")))
}

fn next_hop(explanation: &Explanation) -> Step {
    let Some(hop) = &explanation.decision.next_hop else {
        let found = "not resolved: nobody has answered ARP or neighbour discovery for it; \
                     `sluice doctor` looks closer";
        return Step::new("next hop", found).toned(Tone::Bad);
    };
    let by = explanation.next_hop_by.as_deref().unwrap_or_default();
    let mtu = match hop.mtu {
        0 => "MTU not known".to_owned(),
        mtu => format!("MTU {}", exact(mtu.into())),
    };
    let room = exact(hop.mtu.saturating_sub(hop.overhead).into());
    let tunnel = (hop.mtu != 0 && hop.overhead != 0)
        .then(|| format!("packets of up to {room} bytes fit into the tunnel"));
    Step::new("next hop", format!("{} by {by}, from {}, {mtu}", hop.mac, hop.source_mac))
        .and(tunnel)
}

fn leaves(headers: &Headers) -> Step {
    let Headers { source_mac, destination_mac, tunnel, source, destination, flags, bytes } =
        headers;
    let flags = flag_names(*flags);
    let tunnel =
        tunnel.map(|tunnel| format!("in a tunnel {} -> {}", tunnel.source, tunnel.destination));
    Step::new("leaves as", format!("{source} -> {destination}, {flags}, {bytes} bytes"))
        .and(tunnel)
        .and([format!("MAC {source_mac} -> {destination_mac}")])
}

fn verdict(explanation: &Explanation) -> Step {
    let decision = &explanation.decision;
    let verdict = &decision.verdict;
    let by = explanation.leaves_by.as_deref().unwrap_or_default();
    let to = decision.backend.as_ref().map_or_else(String::new, |backend| {
        let told = explanation.daemon.as_ref().and_then(|told| told.backend.as_ref());
        called(told.map(|member| &member.name), backend.index)
    });
    let (tone, found) = match verdict.becomes {
        Becomes::Forwarded => (Tone::Good, format!("forwarded to {to} by {by}")),
        Becomes::Returned => (Tone::Good, format!("returned from {to} to its client by {by}")),
        Becomes::Reset => (Tone::Bad, format!("the client gets a RST by {by}")),
        Becomes::Passed => (Tone::Doubtful, "passed to this host's kernel, untouched".to_owned()),
        Becomes::Dropped => (Tone::Bad, "dropped".to_owned()),
    };
    let reason = verdict.reason.zip(verdict.help);
    Step::new("verdict", found)
        .toned(tone)
        .and(reason.map(|(name, help)| format!("{name}: {help}")))
}

fn remembered(explanation: &Explanation) -> Step {
    let decision = &explanation.decision;
    let before = decision.flow.as_ref().map(|flow| flow.state);
    let found = match (before, decision.state_after) {
        (None, None) => "no entry in the flow table".to_owned(),
        (Some(before), None) => format!("the entry, {before}, would be freed"),
        (Some(before), Some(after)) if before == after => format!("the entry would stay {after}"),
        (_, Some(after)) => format!("the entry would be {after}"),
    };
    let events = decision.events.join(", ");
    let events = (!events.is_empty()).then(|| format!("counted would be: {events}"));
    Step::new("remembered", found).and(events)
}

fn check(check: &Check) -> Step {
    let (tone, found) = match check {
        Check::Agrees { other_build: false } => {
            (Tone::Good, "it answers a test SYN of this client alike".to_owned())
        }
        Check::Agrees { other_build: true } => (
            Tone::Doubtful,
            "it is another build's, and answers a test SYN of this client alike".to_owned(),
        ),
        Check::Differs { interface, expected, seen } => (
            Tone::Bad,
            format!(
                "on {interface} it answers otherwise: a test SYN of this client should be \
                 {expected}, and is {seen}. See `sluice status`"
            ),
        ),
        Check::NotAsked => (Tone::Plain, "not asked: a frame for no service is counted".to_owned()),
    };
    Step::new("program", found).toned(tone)
}

/// A backend by its name, or by its place in the maps.
fn called(name: Option<&String>, index: u16) -> String {
    name.cloned().unwrap_or_else(|| format!("backend number {index}"))
}

#[cfg(test)]
mod tests;
