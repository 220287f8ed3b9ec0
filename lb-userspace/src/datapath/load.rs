//! Loading the object file: maps and programs, not attached.

use std::fs;

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf, EbpfLoader,
    programs::{
        Xdp,
        links::{FdLink, PinnedLink},
    },
};
use aya_obj::programs::XdpAttachType;
use lb_common::{abi::map, flow::GROUP};
use sha2::{Digest as _, Sha256};

use super::{CLOCK, OBJECT, PROGRAM, diagnose, pins::Pins};

/// Identifies this build's object file.
pub(super) fn object_id() -> u64 {
    let digest = Sha256::digest(OBJECT);
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(bytes)
}

/// Loads everything with new maps, and pins it. The maps are empty: nothing may be attached
/// before they are written.
pub(super) fn load(pins: &Pins, flow_capacity: u32) -> Result<()> {
    let mut object = EbpfLoader::new()
        .map_max_entries(map::FLOWS, flow_capacity / GROUP as u32)
        .map_max_entries(map::FLOW_RECORDS, flow_capacity)
        .load(OBJECT)
        .map_err(diagnose::load_error)?;
    pins.create()?;
    for name in map::ALL {
        let path = pins.map(name);
        object
            .map(name)
            .ok_or_else(|| anyhow!("the object file has no map {name}"))?
            .pin(&path)
            .with_context(|| format!("pin {}", path.display()))?;
    }
    for name in [PROGRAM, CLOCK] {
        pin_program(load_program(&mut object, name)?, pins, name)?;
    }
    Ok(())
}

/// Loads this build's programs on the pinned maps, and puts them in the place of the running
/// ones.
pub(super) fn replace(pins: &Pins) -> Result<()> {
    let mut loader = EbpfLoader::new();
    for name in map::ALL {
        loader.map_pin_path(name, pins.map(name));
    }
    let mut object = loader.load(OBJECT).map_err(diagnose::load_error)?;
    load_program(&mut object, CLOCK)?;
    swap(load_program(&mut object, PROGRAM)?, pins)?;
    for name in [PROGRAM, CLOCK] {
        pin_program(program(&mut object, name)?, pins, name)?;
    }
    Ok(())
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

fn program<'o>(object: &'o mut Ebpf, name: &str) -> Result<&'o mut Xdp> {
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
