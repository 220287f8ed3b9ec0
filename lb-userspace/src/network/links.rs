//! Interfaces, as the kernel's link table has them.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached},
};

use super::{
    Error, Mac,
    netlink::{Dump, Netlink},
};

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's number for it, unique in its network namespace.
    pub index: u32,
    /// `eth0`.
    pub name: Arc<str>,
    /// Its link-layer address; `None` where that is not six bytes.
    pub mac: Option<Mac>,
    /// Largest IP packet, bytes.
    pub mtu: u32,
    /// Switched on by the administrator.
    pub up: bool,
    /// Up, and with a carrier.
    pub running: bool,
    /// Frames on it have Ethernet headers.
    pub ethernet: bool,
    /// The XDP program on it, if any.
    pub xdp: Option<XdpProgram>,
    /// What it is: `ethernet` (a card), `loopback`, or the kernel's word for a virtual one
    /// (`veth`, `vlan`, `bridge`, `bond`, …).
    pub kind: Arc<str>,
}

impl Interface {
    /// Why it carries no frames, and the mend, to follow its name; `None`: it does.
    pub fn fault(&self) -> Option<&'static str> {
        (!self.running).then(|| interface_fault(self.up))
    }
}

/// Why an interface that is not running carries no frames, to follow its name; `up`: it is switched on.
pub(super) fn interface_fault(up: bool) -> &'static str {
    if up {
        "has no carrier: check the cable and the switch port"
    } else {
        "is down: bring it up with `ip link set`"
    }
}

/// The interface of this name.
pub async fn interface(name: &str) -> Result<Interface, Error> {
    let netlink = Netlink::open()?;
    let mut links = Links::default();
    let dump = dump(&netlink).await.map_err(|failure| failure.during("list the interfaces"))?;
    links.replace(&dump);
    links.named(name)
}

/// Asks for all interfaces.
pub(super) async fn dump(netlink: &Netlink) -> Result<Dump, super::Failure> {
    netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default())).await
}

impl Interface {
    /// `None` for what concerns another family, such as a bridge's view of its ports: there,
    /// "deleted" means that the port left the bridge.
    fn parse(message: &LinkMessage) -> Option<Self> {
        if message.header.interface_family != AddressFamily::Unspec {
            return None;
        }
        let flags = message.header.flags;
        let mut interface = Self {
            index: message.header.index,
            name: "".into(),
            mac: None,
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            running: flags.contains(LinkFlags::Up | LinkFlags::Running),
            xdp: None,
            ethernet: message.header.link_layer_type == LinkLayerType::Ether,
            kind: match message.header.link_layer_type {
                LinkLayerType::Ether => "ethernet".into(),
                LinkLayerType::Loopback => "loopback".into(),
                other => other.to_string().to_lowercase().into(),
            },
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name = name.as_str().into(),
                LinkAttribute::Address(bytes) => interface.mac = bytes.as_slice().try_into().ok(),
                LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
                LinkAttribute::Xdp(xdp) => interface.xdp = XdpProgram::parse(xdp),
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        if let LinkInfo::Kind(kind) = info {
                            interface.kind = kind.to_string().into();
                        }
                    }
                }
                _ => {}
            }
        }
        Some(interface)
    }
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpProgram {
    /// Its id.
    pub id: u32,
    /// On the driver's hook, not on the generic one.
    pub native: bool,
}

impl XdpProgram {
    fn parse(attributes: &[LinkXdp]) -> Option<Self> {
        let mut program = None;
        let mut native = false;
        for attribute in attributes {
            match attribute {
                LinkXdp::Attached(attached) => native = *attached == XdpAttached::Driver,
                LinkXdp::ProgId(id) => program = Some(*id),
                _ => {}
            }
        }
        program.filter(|id| *id != 0).map(|id| Self { id, native })
    }
}

/// The interfaces of this network namespace, by index.
#[derive(Default)]
pub(super) struct Links {
    by_index: HashMap<u32, Interface>,
}

impl Links {
    pub(super) fn find(&self, index: u32) -> Option<&Interface> {
        self.by_index.get(&index)
    }

    pub(super) fn named(&self, name: &str) -> Result<Interface, Error> {
        self.by_index.values().find(|link| &*link.name == name).cloned().ok_or_else(|| {
            let existing: BTreeSet<_> =
                self.by_index.values().map(|link| link.name.to_string()).collect();
            Error::NoInterface { name: name.to_owned(), existing: existing.into_iter().collect() }
        })
    }

    /// Takes a message in; returns whether anything changed that we look at.
    pub(super) fn learn(&mut self, message: &LinkMessage) -> bool {
        let Some(interface) = Interface::parse(message) else { return false };
        match self.by_index.get(&interface.index) {
            Some(known) if *known == interface => false,
            _ => {
                self.by_index.insert(interface.index, interface);
                true
            }
        }
    }

    /// Forgets an interface; returns its index if there was one.
    pub(super) fn forget(&mut self, message: &LinkMessage) -> Option<u32> {
        let interface = Interface::parse(message)?;
        self.by_index.remove(&interface.index).map(|known| known.index)
    }

    /// Takes the whole table in; returns the indices that are gone.
    pub(super) fn replace(&mut self, dump: &Dump) -> BTreeSet<u32> {
        let mut gone: BTreeSet<u32> = self.by_index.keys().copied().collect();
        for message in &dump.messages {
            if let RouteNetlinkMessage::NewLink(message) = message {
                gone.remove(&message.header.index);
                self.learn(message);
            }
        }
        if !dump.complete {
            gone.clear();
        }
        for index in &gone {
            self.by_index.remove(index);
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(index: u32, name: &str) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.header.flags = LinkFlags::Up | LinkFlags::Running;
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
            LinkAttribute::Mtu(1500),
        ];
        message
    }

    fn dump(messages: Vec<LinkMessage>, complete: bool) -> Dump {
        Dump {
            messages: messages.into_iter().map(RouteNetlinkMessage::NewLink).collect(),
            complete,
        }
    }

    #[test]
    fn an_absent_interface_is_named_beside_those_that_exist() {
        let mut links = Links::default();
        links.replace(&dump(vec![message(2, "eth0"), message(1, "lo")], true));
        let error = links.named("eth9").expect_err("there is none");
        assert_eq!(error.to_string(), "no interface named eth9; there are: eth0, lo");
        assert_eq!(links.named("eth0").expect("it is there").mac, Some([2, 0, 0, 0, 0, 1]));
    }

    #[test]
    fn a_port_that_leaves_a_bridge_is_still_an_interface() {
        let mut links = Links::default();
        assert!(links.learn(&message(2, "eth0")));
        let mut left = message(2, "eth0");
        left.header.interface_family = AddressFamily::Bridge;
        assert_eq!(links.forget(&left), None);
        assert!(links.find(2).is_some());
        assert_eq!(links.forget(&message(2, "eth0")), Some(2));
        assert!(links.find(2).is_none());
    }

    #[test]
    fn only_a_complete_dump_makes_interfaces_vanish() {
        let mut links = Links::default();
        links.replace(&dump(vec![message(1, "lo"), message(2, "eth0")], true));
        assert_eq!(links.replace(&dump(vec![message(1, "lo")], false)), BTreeSet::new());
        assert_eq!(links.replace(&dump(vec![message(1, "lo")], true)), BTreeSet::from([2]));
    }

    #[test]
    fn a_message_that_changes_nothing_is_no_change() {
        let mut links = Links::default();
        assert!(links.learn(&message(2, "eth0")));
        assert!(!links.learn(&message(2, "eth0")));
        let mut down = message(2, "eth0");
        down.header.flags = LinkFlags::Up;
        assert!(links.learn(&down));
        assert!(links.find(2).is_some_and(|link| link.up && !link.running));
    }

    #[test]
    fn strange_messages_do_no_harm() {
        let mut links = Links::default();
        let mut strange = LinkMessage::default();
        strange.attributes = vec![
            LinkAttribute::Address(vec![0; 20]), // InfiniBand has 20 bytes
            LinkAttribute::Mtu(u32::MAX),
        ];
        assert!(links.learn(&strange));
        assert_eq!(links.find(0).and_then(|link| link.mac), None);
    }
}
