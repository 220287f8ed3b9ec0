//! ARP settings that keep a host from answering for, or asking from, the addresses on its
//! loopback interface.
//!
//! Set for `all` and for the interface: the kernel takes the greater of both, and a host with
//! two interfaces in one network would answer on the other.

use serde::{Deserialize, Serialize};

use crate::network::{self, Ipv4Setting, Sysctl};

/// A setting that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// To which requests the host answers.
    ArpIgnore,
    /// Which source address its own requests have.
    ArpAnnounce,
}

impl Setting {
    /// Both.
    const ALL: [Self; 2] = [Self::ArpIgnore, Self::ArpAnnounce];

    /// As `sysctl` calls it.
    pub fn name(self, interface: &str) -> String {
        let setting = match self {
            Self::ArpIgnore => "arp_ignore",
            Self::ArpAnnounce => "arp_announce",
        };
        format!("net.ipv4.conf.{interface}.{setting}")
    }

    fn sysctl(self, interface: &str) -> Sysctl {
        let setting = match self {
            Self::ArpIgnore => Ipv4Setting::ArpIgnore,
            Self::ArpAnnounce => Ipv4Setting::ArpAnnounce,
        };
        Sysctl::ipv4(interface, setting)
    }

    /// What it is set to where it does not serve.
    pub const fn wanted(self) -> i32 {
        match self {
            // Answer only for addresses of the interface itself.
            Self::ArpIgnore => 1,
            // Ask from the best address of the interface.
            Self::ArpAnnounce => 2,
        }
    }

    /// Whether a value keeps the host quiet: an operator may have reasons for a stricter one
    /// (`arp_ignore` in `Documentation/networking/ip-sysctl.rst`).
    const fn serves(self, value: i32) -> bool {
        match self {
            Self::ArpIgnore => matches!(value, 1 | 2 | 8),
            Self::ArpAnnounce => value == 2,
        }
    }
}

/// A setting as it was before it was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// `all`, or an interface.
    pub interface: String,
    /// Which.
    pub setting: Setting,
    /// Its value.
    pub value: i32,
}

/// A setting as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// As `sysctl` calls it.
    pub setting: String,
    /// Its value; `None`: it can't be read.
    pub value: Option<i32>,
    /// Whether that keeps the host quiet.
    pub in_place: bool,
}

/// Every setting of an interface that matters, as it is.
pub fn look(interface: &str) -> Vec<Seen> {
    every(interface)
        .map(|(interface, setting)| {
            let value = setting.sysctl(interface).read().ok();
            let in_place = value.is_some_and(|value| setting.serves(value));
            Seen { setting: setting.name(interface), value, in_place }
        })
        .collect()
}

/// Settings of an interface that have to be changed, as they are.
pub fn amiss(interface: &str) -> Result<Vec<Found>, network::Error> {
    let mut amiss = Vec::new();
    for (interface, setting) in every(interface) {
        let value = setting.sysctl(interface).read()?;
        if !setting.serves(value) {
            amiss.push(Found { interface: interface.to_owned(), setting, value });
        }
    }
    Ok(amiss)
}

impl Found {
    /// Changes the setting to what is wanted.
    pub fn change(&self) -> Result<(), network::Error> {
        self.setting.sysctl(&self.interface).set(self.setting.wanted()).map(drop)
    }

    /// Sets it back, unless somebody changed it since or the interface is gone.
    pub fn set_back(&self) -> Result<(), network::Error> {
        let sysctl = self.setting.sysctl(&self.interface);
        if sysctl.path().exists() && sysctl.read()? == self.setting.wanted() {
            sysctl.set(self.value)?;
        }
        Ok(())
    }

    /// Whether this is about the same setting.
    pub fn is_like(&self, other: &Self) -> bool {
        self.setting == other.setting && self.interface == other.interface
    }
}

fn every(interface: &str) -> impl Iterator<Item = (&str, Setting)> {
    ["all", interface].into_iter().flat_map(|name| Setting::ALL.map(|setting| (name, setting)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stricter_settings_of_an_operator_are_left_alone() {
        let serving = |setting: Setting| (0..=9).filter(|v| setting.serves(*v)).collect::<Vec<_>>();
        assert_eq!(serving(Setting::ArpIgnore), [1, 2, 8]);
        assert_eq!(serving(Setting::ArpAnnounce), [2]);
        for setting in Setting::ALL {
            assert!(setting.serves(setting.wanted()));
        }
    }

    #[test]
    fn settings_are_called_as_sysctl_calls_them() {
        let names: Vec<_> = look("absent").into_iter().map(|seen| seen.setting).collect();
        assert_eq!(
            names,
            [
                "net.ipv4.conf.all.arp_ignore",
                "net.ipv4.conf.all.arp_announce",
                "net.ipv4.conf.absent.arp_ignore",
                "net.ipv4.conf.absent.arp_announce",
            ]
        );
        assert!(amiss("absent").is_err());
    }
}
