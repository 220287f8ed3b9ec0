//! The agent's program, maps and link: the only file here that knows `aya`.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    EbpfLoader,
    maps::{HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, lpm_trie::Key},
    programs::Xdp,
};
use ipnet::IpNet;
use lb_common::{
    address::Address,
    decapsulate::{ABI_VERSION, Outcome, OutcomeCounts, Source, capacity, map},
};
use sha2::{Digest as _, Sha256};
use zerocopy::IntoBytes as _;

use super::record::Record;
use crate::{
    datapath::{self, Pins},
    instance::Instance,
    model::XdpMode,
    network::Interface,
};

/// The object file of the agent's program, made by `build.rs`.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/agent.o"));
/// Name of the program, in the object file and of its pin.
const PROGRAM: &str = "agent";

/// Identifies this build's object file.
pub fn object_id() -> String {
    Sha256::digest(OBJECT).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// What is pinned of one agent.
pub struct Kernel {
    pins: Pins,
    program: Xdp,
    vips: HashMap<MapData, [u8; 16], u32>,
    sources: LpmTrie<MapData, [u8; 20], u32>,
    outcomes: PerCpuArray<MapData, OutcomeCounts>,
    record: HashMap<MapData, u32, [u8; capacity::RECORD]>,
}

impl Kernel {
    /// Loads everything and pins it. Nothing is attached yet.
    pub fn create(instance: &Instance) -> Result<Self> {
        let pins = Pins::of_agent(instance);
        // Left by a start that was killed before it had written its record.
        pins.remove()?;
        let mut object = EbpfLoader::new().load(OBJECT).map_err(datapath::diagnose::load_error)?;
        let program = datapath::load::load_program(&mut object, PROGRAM)?;
        pins.create()?;
        datapath::load::pin_program(program, &pins, PROGRAM)?;
        for name in map::ALL {
            let path = pins.map(name);
            object
                .map(name)
                .ok_or_else(|| anyhow!("the object file has no map {name}"))?
                .pin(&path)
                .with_context(|| format!("pin {}", path.display()))?;
        }
        Self::open(pins)
    }

    /// Takes up what is pinned; `None` if nothing is. If it was made by another build, this
    /// build's program takes the place of the running one, on the same maps, in one step.
    ///
    /// # Errors
    /// If it is of another network namespace, speaks another ABI, or is damaged: then it is
    /// left as it is.
    pub fn adopt(instance: &Instance) -> Result<Option<(Self, Record)>> {
        let Some((mut kernel, mut record)) = Self::pinned(instance)? else { return Ok(None) };
        if !record.is_of_this_namespace()? {
            bail!(
                "the agent of instance {instance} was set up in another network namespace: run \
                 `sluice agent detach` first, or choose another name with --instance"
            );
        }
        if record.object != object_id() {
            tracing::info!("replacing the kernel program with this build's");
            kernel.renew()?;
            record.object = object_id();
            kernel.set_record(&record)?;
        }
        Ok(Some((kernel, record)))
    }

    /// What is pinned, with its record; `None` if nothing is.
    pub fn pinned(instance: &Instance) -> Result<Option<(Self, Record)>> {
        let pins = Pins::of_agent(instance);
        if !pins.exist() {
            return Ok(None);
        }
        let damaged = || {
            format!(
                "the agent pinned under {} is damaged or of another version; it goes on working. \
                 `sluice agent detach` removes it",
                pins.root().display()
            )
        };
        let kernel = Self::open(pins.clone()).with_context(damaged)?;
        let record = match kernel.record.get(&0, 0) {
            Ok(bytes) => bytes,
            Err(MapError::KeyNotFound) => return Ok(None),
            Err(error) => return Err(error).context("read AGENT_RECORD"),
        };
        let record = record.split(|byte| *byte == 0).next().unwrap_or_default();
        let record: Record =
            serde_json::from_slice(record).context("read AGENT_RECORD").with_context(damaged)?;
        if record.abi_version != ABI_VERSION {
            return Err(anyhow!("it speaks ABI {}, this binary {ABI_VERSION}", record.abi_version))
                .with_context(damaged);
        }
        Ok(Some((kernel, record)))
    }

    fn open(pins: Pins) -> Result<Self> {
        macro_rules! open {
            ($name:expr) => {
                pinned(&pins, $name)?
                    .try_into()
                    .with_context(|| format!("map {} has another layout", $name))?
            };
        }
        Ok(Self {
            program: datapath::load::pinned_program(&pins, PROGRAM)?,
            vips: open!(map::VIPS),
            sources: open!(map::SOURCES),
            outcomes: open!(map::OUTCOMES),
            record: open!(map::RECORD),
            pins,
        })
    }

    fn renew(&mut self) -> Result<()> {
        let mut loader = EbpfLoader::new();
        for name in map::ALL {
            loader.map_pin_path(name, self.pins.map(name));
        }
        let mut object = loader.load(OBJECT).map_err(datapath::diagnose::load_error)?;
        let program = datapath::load::load_program(&mut object, PROGRAM)?;
        datapath::load::swap(program, &self.pins)?;
        datapath::load::pin_program(program, &self.pins, PROGRAM)?;
        self.program = datapath::load::pinned_program(&self.pins, PROGRAM)?;
        Ok(())
    }

    /// Writes the record, in one step.
    pub fn set_record(&mut self, record: &Record) -> Result<()> {
        let json = serde_json::to_vec(record).context("write the record as JSON")?;
        let mut bytes = [0; capacity::RECORD];
        // The last byte stays zero: where the JSON ends.
        bytes[..capacity::RECORD - 1]
            .get_mut(..json.len())
            .context("the record is too long")?
            .copy_from_slice(&json);
        self.record.insert(0, bytes, 0).context("write AGENT_RECORD")
    }

    /// VIPs whose packets are unpacked.
    pub fn vips(&self) -> Result<BTreeSet<IpAddr>> {
        let keys = self.vips.keys().map(|key| key.map(|bytes| Address::v6(bytes).into()));
        keys.collect::<Result<_, _>>().context("read AGENT_VIPS")
    }

    /// Adds a VIP.
    pub fn add_vip(&mut self, vip: IpAddr) -> Result<()> {
        self.vips.insert(Address::from(vip).to_v6(), 1, 0).context("write AGENT_VIPS")
    }

    /// Removes a VIP.
    pub fn remove_vip(&mut self, vip: IpAddr) -> Result<()> {
        self.vips.remove(&Address::from(vip).to_v6()).context("delete from AGENT_VIPS")
    }

    /// Accepted sources.
    pub fn sources(&self) -> Result<HashSet<Source>> {
        let keys = self.sources.keys().map(|key| key.map(|key| source_of(&key)));
        keys.collect::<Result<_, _>>().context("read AGENT_SOURCES")
    }

    /// Accepts exactly these sources. What was accepted and shall be, is all the while.
    /// Returns whether anything changed.
    pub fn set_sources(&mut self, wanted: &HashSet<Source>) -> Result<bool> {
        let before = self.sources()?;
        for source in wanted.difference(&before) {
            self.sources.insert(&key_of(source), 1, 0).context("write AGENT_SOURCES")?;
        }
        for source in before.difference(wanted) {
            self.sources.remove(&key_of(source)).context("delete from AGENT_SOURCES")?;
        }
        Ok(before != *wanted)
    }

    /// Frames by outcome, in the order of [`Outcome::ALL`].
    pub fn outcomes(&self) -> Result<[u64; Outcome::ALL.len()]> {
        let rows = self.outcomes.get(&0, 0).context("read AGENT_OUTCOMES")?;
        Ok(std::array::from_fn(|outcome| rows.iter().map(|row| row[outcome]).sum()))
    }

    /// Whether frames of this interface run through the program.
    pub fn is_on(&self, interface: &Interface) -> Result<bool> {
        let id = self.program.info().context("ask the kernel about the program")?.id();
        Ok(interface.xdp.is_some_and(|xdp| xdp.id == id))
    }

    /// Attaches to an interface, on the driver's hook or else, with a warning, the generic one.
    pub fn attach(&mut self, interface: &Interface) -> Result<()> {
        datapath::attach::attach(&mut self.program, &self.pins, interface, XdpMode::Auto)
    }

    /// Interfaces it was attached to.
    pub fn interfaces(&self) -> Result<Vec<String>> {
        self.pins.links()
    }

    /// Takes it off an interface.
    pub fn take_off(&self, interface: &str) -> Result<()> {
        self.pins.remove_link(interface)
    }
}

fn pinned(pins: &Pins, name: &str) -> Result<Map> {
    let path = pins.map(name);
    MapData::from_pin(&path)
        .and_then(Map::from_map_data)
        .with_context(|| format!("open {}", path.display()))
}

/// The trie's key for a source: its first field is the kernel's.
fn key_of(source: &Source) -> Key<[u8; 20]> {
    let mut data = [0; 20];
    data.copy_from_slice(&source.as_bytes()[4..]);
    Key::new(source.prefix_length, data)
}

fn source_of(key: &Key<[u8; 20]>) -> Source {
    let data = key.data();
    let (mut family, mut address) = ([0; 4], [0; 16]);
    family.copy_from_slice(&data[..4]);
    address.copy_from_slice(&data[4..]);
    Source { prefix_length: key.prefix_len(), family, address: Address::v6(address) }
}

/// The sources in a prefix.
pub fn sources_in(prefix: IpNet) -> Source {
    let length = u32::from(prefix.prefix_len());
    match prefix.trunc() {
        IpNet::V4(v4) => Source {
            prefix_length: Source::IPV4_BITS + length,
            ..Source::v4(v4.network().octets())
        },
        IpNet::V6(v6) => Source {
            prefix_length: Source::FAMILY_BITS + length,
            ..Source::v6(v6.network().octets())
        },
    }
}

/// The prefix of a source; `None`: all of both families.
pub fn prefix_of(source: &Source) -> Option<IpNet> {
    let bits = match source.address.into() {
        IpAddr::V4(_) if source.family == Source::v4([0; 4]).family => Source::IPV4_BITS,
        _ => Source::FAMILY_BITS,
    };
    let length = u8::try_from(source.prefix_length.checked_sub(bits)?).ok()?;
    IpNet::new(source.address.into(), length).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_survive_the_way_into_the_trie_and_back() {
        for text in
            ["10.255.0.0/16", "198.18.0.1/32", "0.0.0.0/0", "2001:db8::/32", "::/0", "::1/128"]
        {
            let prefix: IpNet = text.parse().expect(text);
            let source = source_of(&key_of(&sources_in(prefix)));
            assert_eq!(prefix_of(&source), Some(prefix), "{text}");
        }
        assert_eq!(prefix_of(&source_of(&key_of(&Source::ANY))), None);
    }

    #[test]
    fn host_bits_of_a_prefix_do_not_count() {
        let parse = |text: &str| sources_in(text.parse().expect("a literal prefix"));
        assert_eq!(parse("10.255.3.7/16"), parse("10.255.0.0/16"));
        assert_eq!(parse("2001:db8::7/32"), parse("2001:db8::/32"));
    }
}
