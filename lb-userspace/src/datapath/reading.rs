//! A running instance, opened to be read: beside its daemon or without one. Nothing is taken up,
//! mended, counted or written, and the flow table is mapped so that a write would be a fault.

use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result, bail};
use aya::programs::Xdp;
use lb_common::{
    abi::{ABI_VERSION, FlowRecord, Settings},
    flow::GROUP,
};

use super::{
    CLOCK, Maps, OBJECT, Pins, clock, load,
    memory::{Mapping, read},
    network_namespace,
    run::{self, Answer},
};
use crate::instance::Instance;

/// Words of one flow record.
const RECORD_WORDS: usize = size_of::<FlowRecord>() / 8;

/// Maps and programs of an instance that is attached.
pub struct Reading {
    /// Its maps.
    pub maps: Maps,
    settings: Settings,
    words: Mapping,
    records: Mapping,
    clock: Xdp,
    attached: Vec<(Vec<String>, Xdp)>,
}

impl Reading {
    /// Opens what an instance has pinned.
    ///
    /// # Errors
    /// If it is not attached, speaks another ABI than this binary, is attached in another network
    /// namespace, or can't be read.
    pub fn open(instance: &Instance) -> Result<Self> {
        let pins = Pins::of(instance);
        if pins.links()?.is_empty() {
            bail!(
                "instance {instance} is not attached to any interface: `sluice run --config FILE` \
                 attaches it"
            );
        }
        let settings = load::settings(&pins)?;
        if settings.abi_version != ABI_VERSION {
            bail!(
                "instance {instance} speaks ABI {}, this binary {ABI_VERSION}: ask with the binary \
                 that runs it",
                settings.abi_version
            );
        }
        if settings.network_namespace != network_namespace()? {
            bail!("instance {instance} is attached in another network namespace: ask there");
        }
        let maps = Maps::pinned(&pins)?;
        let flows = (settings.flow_mask as usize + 1) * GROUP;
        let words = Mapping::readable(maps.flows_fd(), flows * 8).context("map FLOWS")?;
        let bytes = flows * size_of::<FlowRecord>();
        let records =
            Mapping::readable(maps.flow_records_fd(), bytes).context("map FLOW_RECORDS")?;
        let clock = load::pinned_program(&pins, CLOCK)?;
        let attached = load::attached(&pins)?;
        Ok(Self { maps, settings, words, records, clock, attached })
    }

    /// What every packet is told.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether the instance was started or upgraded by another build than this one.
    pub fn is_of_another_build(&self) -> bool {
        self.settings.object_id != load::object_id(OBJECT)
    }

    /// The names of the interfaces where it is attached.
    pub fn interfaces(&self) -> impl Iterator<Item = &str> {
        self.attached.iter().flat_map(|(names, _)| names).map(String::as_str)
    }

    /// The kernel's jiffies now, their lower 32 bits.
    ///
    /// # Errors
    /// If the kernel does not tell them.
    pub fn now(&self) -> Result<u32> {
        clock::now(&self.clock)
    }

    /// A group of the flow table; `None` behind its end.
    pub fn group(&self, index: u32) -> Option<[u64; GROUP]> {
        let words = self.words.words().get(index as usize * GROUP..)?.first_chunk::<GROUP>()?;
        Some(words.each_ref().map(|word| word.load(Ordering::Relaxed)))
    }

    /// The record of the flow in a word of the table; `None` behind its end.
    pub fn record(&self, word: u32) -> Option<FlowRecord> {
        let words = self.records.words().get(word as usize * RECORD_WORDS..)?;
        Some(read(words.first_chunk::<RECORD_WORDS>()?))
    }

    /// What each attached program answers to a self-test of the daemon's kind, which enters no flow
    /// and no count; with the names of its interfaces.
    ///
    /// # Errors
    /// If the kernel does not run it.
    pub fn test(&self, frame: &[u8]) -> Result<Vec<(String, Answer)>> {
        let run = |(names, program): &(Vec<String>, Xdp)| {
            Ok((names.join(", "), run::run(program, frame, None)?))
        };
        self.attached.iter().map(run).collect()
    }
}
