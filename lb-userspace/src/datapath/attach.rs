//! Attaching to interfaces, and taking the instance off them.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, anyhow, bail};
use aya::programs::{
    ProgramError, Xdp,
    links::{FdLink, PinnedLink},
    xdp::XdpLink,
};

use super::{aya_mode, diagnose, pins::Pins};
use crate::{
    instance::Instance,
    model::XdpMode,
    network::{self, Interface},
};

/// Attaches by a link of our own, pinned.
pub(crate) fn attach(
    program: &mut Xdp,
    pins: &Pins,
    interface: &Interface,
    mode: XdpMode,
) -> Result<()> {
    let name = &*interface.name;
    // Frames without an Ethernet header would be read wrongly, and on loopback self-tests arrive.
    if !interface.ethernet {
        bail!(
            "{name} is of kind {}, not Ethernet: no client's frame arrives there",
            interface.kind
        );
    }
    let path = pins.link(name);
    if path.exists() {
        let alive = interface.xdp.as_ref().is_some_and(|xdp| {
            FdLink::from(match PinnedLink::from_pin(&path) {
                Ok(link) => link,
                Err(_) => return false,
            })
            .info()
            .is_ok_and(|link| link.program_id() == xdp.id)
        });
        if alive {
            return Ok(());
        }
        // The interface went away and came back: the link holds on to what is gone.
        pins.remove_link(name)?;
    }
    let link = match mode {
        XdpMode::Native => attach_as(program, interface, true),
        XdpMode::Generic => attach_as(program, interface, false),
        XdpMode::Auto => attach_as(program, interface, true).or_else(|error| {
            tracing::warn!(
                interface = name,
                "the driver takes no XDP program ({error:#}); attaching to the generic hook, \
                 which is slower"
            );
            attach_as(program, interface, false)
        }),
    }?;
    link.pin(&path).with_context(|| format!("pin {}", path.display()))?;
    Ok(())
}

/// Attaches to one of the two hooks; dropping the link detaches.
pub(super) fn attach_as(program: &mut Xdp, interface: &Interface, native: bool) -> Result<FdLink> {
    let name = &*interface.name;
    let hook = if native { "native" } else { "generic" };
    let id = program
        .attach_to_if_index(interface.index, aya_mode(native))
        .map_err(|error| explain(error, interface))
        .with_context(|| format!("attach to {name} ({hook})"))?;
    let link: XdpLink = program.take_link(id)?;
    // aya falls back to netlink where the kernel refuses a link with EINVAL; such an
    // attachment can't be pinned, so it would die with us. Dropping it detaches.
    FdLink::try_from(link).map_err(|_| {
        anyhow!("attach to {name} ({hook}): the kernel gives no bpf_link for this interface")
    })
}

fn explain(error: ProgramError, interface: &Interface) -> anyhow::Error {
    let errno = match &error {
        ProgramError::SyscallError(syscall) => syscall.io_error.raw_os_error(),
        _ => None,
    };
    match (errno, &interface.xdp) {
        (Some(libc::EBUSY | libc::EEXIST), Some(other)) => anyhow!(
            "another XDP program (id {}) is attached there: take it off with \
             `ip link set dev {} xdp off`, or `bpftool link` if it is a link's",
            other.id,
            interface.name
        ),
        (Some(libc::EOPNOTSUPP), _) => anyhow!("its driver has no XDP"),
        (Some(libc::EPERM), _) => anyhow!(diagnose::NO_PERMISSION),
        _ => anyhow!(error),
    }
}

/// Takes an instance off the machine: links first, then the VIPs it added, then everything
/// pinned. Returns whether there was anything to take off.
///
/// # Errors
/// If something can't be removed.
pub async fn detach(instance: &Instance) -> Result<bool> {
    let pins = Pins::of(instance);
    if !pins.exist() {
        return Ok(false);
    }
    for name in pins.links()? {
        pins.remove_link(&name)?;
    }
    let left = super::maps::left_behind(&pins);
    let (vips, elsewhere) = match &left {
        Ok((vips, namespace)) => (vips.clone(), *namespace != super::network_namespace()?),
        Err(_) => (BTreeSet::new(), false),
    };
    if !elsewhere {
        // Only those that carry our mark go; an operator's own stay.
        network::remove_vips(&vips).await?;
    }
    pins.remove()?;
    match left {
        Err(error) => Err(error.context("detached, but its VIPs may still be on this host")),
        Ok(_) if elsewhere && !vips.is_empty() => bail!(
            "detached, but instance {} ran in another network namespace, and its VIPs are still \
             there: remove them with `ip address delete`",
            instance.name()
        ),
        Ok(_) => Ok(true),
    }
}
