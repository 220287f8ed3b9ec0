//! Other builds of `sluice`, made from the one under test by changing the kernel program's
//! object file inside the binary: what an upgrade needs, without building twice.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use lb_userspace::datapath::OBJECT;

use super::sluice_binary;

/// A build whose program does the same: only the identity of its object file differs. `number`
/// tells such builds apart.
///
/// # Errors
/// If the binary under test can't be read or does not hold this build's object.
pub fn same_program(directory: &Path, number: u8) -> Result<PathBuf> {
    let mut object = OBJECT.to_vec();
    // The last byte of `e_ident` is padding (System V gABI, "ELF Identification").
    object[15] = number;
    write(directory, &format!("sluice-{number}"), &object)
}

/// A build whose program drops every frame and counts none.
///
/// # Errors
/// If the binary under test can't be read or does not hold this build's object.
pub fn broken_program(directory: &Path) -> Result<PathBuf> {
    let mut object = OBJECT.to_vec();
    let (start, length) = function(&object, "sluice").context("the object has no `sluice`")?;
    let code = &mut object[start..start + length];
    // `exit` is all zeros but for its opcode, so no half of a wide instruction looks like it.
    let exit =
        code.chunks_exact(8).rposition(|instruction| instruction == [0x95, 0, 0, 0, 0, 0, 0, 0]);
    let exit = exit.context("the program never ends")?;
    // r0 = XDP_DROP; if r0 == XDP_DROP goto exit. Without the condition the verifier would
    // refuse what is never reached.
    let skip = u16::try_from(exit - 2)?.to_le_bytes();
    code[..8].copy_from_slice(&[0xb7, 0, 0, 0, 1, 0, 0, 0]);
    code[8..16].copy_from_slice(&[0x15, 0, skip[0], skip[1], 1, 0, 0, 0]);
    write(directory, "sluice-broken", &object)
}

/// A build whose program the verifier refuses.
///
/// # Errors
/// If the binary under test can't be read or does not hold this build's object.
pub fn invalid_program(directory: &Path) -> Result<PathBuf> {
    let mut object = OBJECT.to_vec();
    let (start, _) = function(&object, "sluice").context("the object has no `sluice`")?;
    // r0 = *(u64 *)(r9 + 0): nobody has written r9.
    object[start..start + 8].copy_from_slice(&[0x79, 0x90, 0, 0, 0, 0, 0, 0]);
    write(directory, "sluice-invalid", &object)
}

fn write(directory: &Path, name: &str, object: &[u8]) -> Result<PathBuf> {
    let original = sluice_binary()?;
    let mut binary = fs::read(original).with_context(|| format!("read {}", original.display()))?;
    // Its first words are like any ELF file's: look for a part of the code.
    let probe = &OBJECT[64..128];
    let place = (0..binary.len().saturating_sub(OBJECT.len()))
        .step_by(8)
        .find(|&at| binary[at + 64..].starts_with(probe) && binary[at..].starts_with(OBJECT))
        .with_context(|| format!("{} does not hold this build's object", original.display()))?;
    binary[place..place + object.len()].copy_from_slice(object);
    let path = directory.join(name);
    fs::write(&path, binary).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// Where a function's code is in an ELF file: offset and bytes.
fn function(object: &[u8], name: &str) -> Option<(usize, usize)> {
    const SYMTAB: u64 = 2;
    let number = |at: usize, bytes: usize| -> Option<u64> {
        let mut word = [0; 8];
        word[..bytes].copy_from_slice(object.get(at..at + bytes)?);
        Some(u64::from_le_bytes(word))
    };
    // `Elf64_Ehdr`: e_shoff, e_shentsize, e_shnum; `Elf64_Shdr`: type, offset, size, link.
    let (table, size, count) = (number(40, 8)?, number(58, 2)?, number(60, 2)?);
    let section = |index: u64| (table + index * size) as usize;
    let symbols = (0..count).map(section).find(|&at| number(at + 4, 4) == Some(SYMTAB))?;
    let strings = number(section(number(symbols + 40, 4)?) + 24, 8)? as usize;
    let (first, bytes) = (number(symbols + 24, 8)? as usize, number(symbols + 32, 8)? as usize);
    (first..first + bytes).step_by(24).find_map(|symbol| {
        // `Elf64_Sym`: name, section, value, size.
        let text = object.get(strings + number(symbol, 4)? as usize..)?;
        let found = text.strip_prefix(name.as_bytes())?.first() == Some(&0);
        let code = number(section(number(symbol + 6, 2)?) + 24, 8)?;
        let (value, length) = (number(symbol + 8, 8)?, number(symbol + 16, 8)?);
        found.then_some(((code + value) as usize, length as usize))
    })
}
