//! Settings of an interface under `/proc/sys/net/ipv4/conf`, and which ports the host's own
//! sockets get.
//!
//! `/proc/sys/net` shows the network namespace of the thread that opens the file, whichever
//! namespace `/proc` was mounted in (`net_ctl_root` in the kernel's `net/sysctl_net.c`).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::Error;
use crate::model::{PortClash, PortRange};

/// Where the kernel keeps those of interfaces.
const ROOT: &str = "/proc/sys/net/ipv4/conf";
/// First and last port for sockets that name none, of IPv6 too.
const LOCAL_PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// What of an interface is set. For each the kernel combines the value of `all` with the
/// interface's own: the greater one counts (`IN_DEV_MAXCONF`, `include/linux/inetdevice.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv4Setting {
    /// To which ARP requests it answers; 1: only for addresses of the interface itself.
    ArpIgnore,
    /// Which source address its ARP requests have; 2: always the best of the interface.
    ArpAnnounce,
    /// Reverse-path filter; 0: none, 1: strict, 2: loose.
    RpFilter,
}

impl Ipv4Setting {
    fn file(self) -> &'static str {
        match self {
            Self::ArpIgnore => "arp_ignore",
            Self::ArpAnnounce => "arp_announce",
            Self::RpFilter => "rp_filter",
        }
    }
}

/// One setting of one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    path: PathBuf,
}

impl Sysctl {
    /// The setting of `interface`, which may be `all`.
    pub fn ipv4(interface: &str, setting: Ipv4Setting) -> Self {
        // The kernel lets no interface be called `.` or `..` or have a slash; an argument might.
        let interface = interface.replace('/', "_").replace("..", "_");
        Self { path: Path::new(ROOT).join(interface).join(setting.file()) }
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its value.
    pub fn read(&self) -> Result<i32, Error> {
        fs::read_to_string(&self.path)
            .and_then(|text| text.trim().parse().map_err(io::Error::other))
            .map_err(|source| self.error("read", source))
    }

    /// Sets it; returns what it was before, to set it back one day.
    pub fn set(&self, value: i32) -> Result<i32, Error> {
        let previous = self.read()?;
        if previous != value {
            fs::write(&self.path, value.to_string())
                .map_err(|source| self.error("write", source))?;
        }
        Ok(previous)
    }

    fn error(&self, attempt: &'static str, source: io::Error) -> Error {
        Error::Sysctl { attempt, path: self.path.clone(), source }
    }
}

/// Whether the host's own sockets get ports that NAT uses.
///
/// # Errors
/// If the kernel does not tell which ports they get.
pub fn port_clash(nat: PortRange) -> Result<Option<PortClash>, Error> {
    Ok(PortClash::of(nat, local_ports()?))
}

/// The ports that the kernel gives to sockets that name none: to those of IPv6 too.
fn local_ports() -> Result<PortRange, Error> {
    let error = |source| Error::Sysctl { attempt: "read", path: LOCAL_PORTS.into(), source };
    let text = fs::read_to_string(LOCAL_PORTS).map_err(error)?;
    let mut ports = text.split_whitespace().map(str::parse);
    match (ports.next(), ports.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Ok(PortRange { first, last }),
        _ => Err(error(io::Error::other(format!("{:?} is no range of ports", text.trim())))),
    }
}

/// What to do about an error, to follow its text.
pub(super) fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => ": there is no such interface",
        io::ErrorKind::PermissionDenied => ": run as root",
        io::ErrorKind::ReadOnlyFilesystem => {
            ": /proc/sys is read-only, as in an unprivileged container; set it from outside"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::lab::Namespace;

    #[test]
    fn a_path_stays_where_it_belongs() {
        let cases = [
            ("eth0", "/proc/sys/net/ipv4/conf/eth0/rp_filter"),
            ("eth0.100", "/proc/sys/net/ipv4/conf/eth0.100/rp_filter"),
            ("../../kernel", "/proc/sys/net/ipv4/conf/____kernel/rp_filter"),
            ("/etc", "/proc/sys/net/ipv4/conf/_etc/rp_filter"),
        ];
        for (interface, expected) in cases {
            let setting = Sysctl::ipv4(interface, Ipv4Setting::RpFilter);
            assert_eq!(setting.path(), Path::new(expected), "{interface}");
        }
    }

    #[test]
    fn an_absent_interface_is_an_error_that_names_the_file() {
        let error = Sysctl::ipv4("h2-absent", Ipv4Setting::ArpIgnore).read().expect_err("absent");
        assert_eq!(
            error.to_string(),
            "can't read /proc/sys/net/ipv4/conf/h2-absent/arp_ignore: \
             No such file or directory (os error 2): there is no such interface"
        );
    }

    #[test]
    fn ports_clash_with_those_of_the_threads_own_namespace() {
        let (Some(here), Some(there)) = (Namespace::new(), Namespace::new()) else { return };
        let write = || fs::write(LOCAL_PORTS, "20000 40001");
        here.run(write).expect("the namespace's own setting");
        let clash = |namespace: &Namespace| {
            let clash = namespace.run(|| port_clash(PortRange::NAT)).expect("it can be read");
            clash.map(|clash| clash.to_string())
        };
        let text = clash(&here).expect("a clash");
        assert!(text.contains("nat_ports 1024-32767 and this host's net.ipv4."), "{text}");
        assert!(text.contains("ip_local_port_range 20000-40001 overlap"), "{text}");
        assert_eq!(clash(&there), None, "Linux's own default leaves NAT its own");
    }

    #[test]
    fn a_setting_is_set_in_the_threads_own_namespace_and_set_back() {
        let (Some(here), Some(there)) = (Namespace::new(), Namespace::new()) else { return };
        let setting = Sysctl::ipv4("lo", Ipv4Setting::ArpIgnore);
        let set = |value| {
            let setting = setting.clone();
            here.run(move || setting.set(value)).expect("set it")
        };
        assert_eq!(set(1), 0);
        assert_eq!(set(1), 1);
        let elsewhere = setting.clone();
        assert_eq!(there.run(move || elsewhere.read()).expect("read it"), 0);
        assert_eq!(set(0), 1);
    }
}
