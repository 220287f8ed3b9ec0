//! A capture file for Wireshark: each frame as it came and as it went, with what was decided in its
//! comment (pcapng, draft-ietf-opsawg-pcapng).

use std::{borrow::Cow, collections::BTreeMap, io::Write, time::Duration};

use anyhow::{Context as _, Result};
use pcap_file::{
    DataLink, Endianness,
    pcapng::{
        PcapNgBlock as _, PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
            section_header::{SectionHeaderBlock, SectionHeaderOption},
        },
    },
};

use super::{
    line::{Line, Told},
    names,
};
use crate::control::api::VERSION;

/// `epb_flags` (§4.3.1): the packet was received, or sent.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// Time stamps count nanoseconds: ten to the minus this.
const NANOSECONDS: u8 = 9;

/// A file that is being written.
pub struct Capture<W: Write> {
    writer: PcapNgWriter<W>,
    /// Interfaces by index, with their numbers in the file.
    interfaces: BTreeMap<u32, u32>,
}

impl<W: Write> Capture<W> {
    /// Begins the file.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn begin(file: W) -> Result<Self> {
        let application = format!("sluice {VERSION}");
        let section = SectionHeaderBlock {
            endianness: Endianness::native(),
            options: vec![SectionHeaderOption::UserApplication(Cow::Owned(application))],
            ..SectionHeaderBlock::default()
        };
        let writer = PcapNgWriter::with_section_header(file, section).context(WRITE)?;
        Ok(Self { writer, interfaces: BTreeMap::new() })
    }

    /// Writes a frame: as it came, and as it went if it did.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write(&mut self, told: &Told<'_>, line: &Line, epoch: i128) -> Result<()> {
        let header = &told.header;
        let at = u64::try_from(told.since_1970(epoch)).unwrap_or(0);
        let comment = line.sentence();
        self.frame(header.interface, at, header.length, told.before, INBOUND, &comment)?;
        if header.leaves_by != 0 {
            self.frame(header.leaves_by, at, header.length_after, told.after, OUTBOUND, &comment)?;
        }
        Ok(())
    }

    fn frame(
        &mut self,
        interface: u32,
        at: u64,
        length: u32,
        bytes: &[u8],
        flags: u32,
        comment: &str,
    ) -> Result<()> {
        let interface_id = self.interface(interface)?;
        let block = EnhancedPacketBlock {
            interface_id,
            timestamp: Duration::from_nanos(at),
            original_len: length,
            data: Cow::Borrowed(bytes),
            options: vec![
                EnhancedPacketOption::Comment(Cow::Borrowed(comment)),
                EnhancedPacketOption::Flags(flags),
            ],
        };
        self.writer.write_block(&block.into_block()).context(WRITE)?;
        Ok(())
    }

    /// The number of an interface in the file, which is told of it once.
    fn interface(&mut self, index: u32) -> Result<u32> {
        if let Some(number) = self.interfaces.get(&index) {
            return Ok(*number);
        }
        let block = InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: super::WHOLE,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Owned(names::interface(index))),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        };
        self.writer.write_block(&block.into_block()).context(WRITE)?;
        let number = self.interfaces.len() as u32;
        self.interfaces.insert(index, number);
        Ok(number)
    }

    /// Lets readers see what was written.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn flush(&mut self) -> Result<()> {
        self.writer.get_mut().flush().context(WRITE)
    }
}

const WRITE: &str = "write the capture file";
