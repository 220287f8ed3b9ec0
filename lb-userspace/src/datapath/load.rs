//! Loading the object file: maps and programs, not attached.

use std::{borrow::Cow, collections::BTreeMap, fs, os::fd::AsFd as _};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::MapData,
    programs::{
        Xdp,
        links::{FdLink, PinnedLink},
        loaded_programs,
    },
};
use aya_obj::programs::XdpAttachType;
use lb_common::{
    abi::{ABI_VERSION, Settings, map},
    flow::GROUP,
};
use sha2::{Digest as _, Sha256};

use super::{
    PROGRAM, PROGRAMS, diagnose,
    memory::{Mapping, read},
    pins::Pins,
};

/// Identifies an object file.
pub(super) fn object_id(object: &[u8]) -> u64 {
    let digest = Sha256::digest(object);
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(bytes)
}

/// Loads everything with new maps, and pins it; but maps that are pinned there already are
/// taken as they are. The new ones are empty: nothing may be attached before they are written.
pub(super) fn load(pins: &Pins, object: &[u8], flow_capacity: u32) -> Result<()> {
    pins.create()?;
    let mut loader = EbpfLoader::new();
    loader
        .map_max_entries(map::FLOWS, flow_capacity / GROUP as u32)
        .map_max_entries(map::FLOW_RECORDS, flow_capacity)
        .map_max_entries(map::NAT_HOPS, flow_capacity);
    for name in map::ALL {
        loader.map_pin_path(name, pins.map(name));
    }
    let mut object = loader.load(object).map_err(diagnose::load_error)?;
    for name in PROGRAMS {
        pin_program(load_program(&mut object, name)?, pins, name)?;
    }
    Ok(())
}

/// Loads programs of an object file on the pinned maps, and does not attach them.
pub(super) fn beside(pins: &Pins, object: &[u8], programs: &[&str]) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    for name in map::ALL {
        loader.map_pin_path(name, pins.map(name));
    }
    let mut object = loader.load(object).map_err(diagnose::load_error)?;
    for name in programs {
        load_program(&mut object, name)?;
    }
    Ok(object)
}

/// What the packets of a pinned instance are told, whatever its other maps look like.
pub(super) fn settings(pins: &Pins) -> Result<Settings> {
    let path = pins.map(map::GLOBALS);
    let open = || format!("open {}", path.display());
    let map = MapData::from_pin(&path).with_context(open)?;
    let bytes = map.info().with_context(open)?.value_size() as usize;
    if bytes < size_of::<Settings>() {
        bail!(
            "the settings of the pinned instance have {bytes} bytes, this build's {}: it speaks \
             another ABI than {ABI_VERSION}",
            size_of::<Settings>()
        );
    }
    // Whatever follows them there: by its version an instance of another ABI is told.
    let mapping = Mapping::readable(map.fd().as_fd(), size_of::<Settings>())
        .with_context(|| format!("map {}", path.display()))?;
    Ok(read(mapping.words()))
}

/// Puts a loaded program in the place of the attached one: link by link, each in one step.
pub(crate) fn swap(program: &mut Xdp, pins: &Pins) -> Result<()> {
    for interface in pins.links()? {
        let path = pins.link(&interface);
        let link =
            PinnedLink::from_pin(&path).with_context(|| format!("open {}", path.display()))?;
        let link = FdLink::from(link)
            .try_into()
            .with_context(|| format!("{} is no XDP link", path.display()))?;
        let id = program
            .attach_to_link(link)
            .with_context(|| format!("replace the program on {interface}"))?;
        // Ours no longer: it lives by its pin.
        drop(program.take_link(id)?);
    }
    Ok(())
}

/// Whether a program is attached by one of an instance's links.
pub(super) fn is_attached(program: &Xdp, pins: &Pins) -> Result<bool> {
    let id = program.info().context("ask the kernel about the program")?.id();
    Ok(linked(pins)?.contains_key(&id))
}

/// What an instance's links run: by the program's id, the names of the interfaces.
pub(super) fn linked(pins: &Pins) -> Result<BTreeMap<u32, Vec<String>>> {
    let mut linked: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for interface in pins.links()? {
        let path = pins.link(&interface);
        let link = PinnedLink::from_pin(&path).map(FdLink::from);
        let link = link.and_then(|link| link.info());
        let link = link.with_context(|| format!("look at {}", path.display()))?;
        linked.entry(link.program_id()).or_default().push(interface);
    }
    Ok(linked)
}

/// The programs that an instance's links run, each with the names of its interfaces. Most often
/// that is the pinned one; whatever else has been put there is looked up by its id.
pub(super) fn attached(pins: &Pins) -> Result<Vec<(Vec<String>, Xdp)>> {
    let mut attached = Vec::new();
    for (id, interfaces) in linked(pins)? {
        let pinned = pinned_program(pins, PROGRAM).ok();
        let is_it = |program: &Xdp| program.info().is_ok_and(|info| info.id() == id);
        let program = match pinned.filter(is_it) {
            Some(program) => program,
            None => {
                let info = loaded_programs()
                    .find_map(|info| info.ok().filter(|info| info.id() == id))
                    .ok_or_else(|| anyhow!("program {id} of {} is gone", interfaces.join(", ")))?;
                Xdp::from_program_info(info, Cow::Borrowed(PROGRAM), XdpAttachType::Interface)
                    .with_context(|| format!("open program {id} of {}", interfaces.join(", ")))?
            }
        };
        attached.push((interfaces, program));
    }
    Ok(attached)
}

/// Opens a pinned program.
pub(crate) fn pinned_program(pins: &Pins, name: &str) -> Result<Xdp> {
    let path = pins.program(name);
    Xdp::from_pin(&path, XdpAttachType::Interface)
        .with_context(|| format!("open {}", path.display()))
}

/// Pins a program, over an older one.
pub(crate) fn pin_program(program: &mut Xdp, pins: &Pins, name: &str) -> Result<()> {
    let path = pins.program(name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", path.display()));
        }
        _ => {}
    }
    program.pin(&path).with_context(|| format!("pin {}", path.display()))
}

pub(super) fn program<'o>(object: &'o mut Ebpf, name: &str) -> Result<&'o mut Xdp> {
    object
        .program_mut(name)
        .ok_or_else(|| anyhow!("the object file has no program {name}"))?
        .try_into()
        .with_context(|| format!("program {name} is not for XDP"))
}

/// Loads one program of an object file.
pub(crate) fn load_program<'o>(object: &'o mut Ebpf, name: &str) -> Result<&'o mut Xdp> {
    let program = program(object, name)?;
    program.load().map_err(|error| diagnose::verifier_error(name, error))?;
    Ok(program)
}
