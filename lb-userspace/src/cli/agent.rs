//! `sluice agent`: the backend's side, which needs no daemon of ours on its host.

use std::net::IpAddr;

use clap::Subcommand;
use ipnet::IpNet;

use super::{Output, log};
use crate::{agent, instance::Instance};

/// What can be done on a backend's host.
#[derive(Subcommand)]
pub enum Command {
    /// Make this host a backend: add VIPs, keep ARP quiet, unpack tunnels
    ///
    /// Puts each VIP on the loopback interface, sets arp_ignore and arp_announce so that only
    /// the balancer answers for it, and unpacks 4in4, 6in6, 4in6 and 6in4 in an XDP program.
    /// All of it stays when the process ends; `sluice agent detach` undoes it.
    #[command(after_help = "Example: sluice agent run --interface eth0 --vip 203.0.113.10 \
                            --from 10.255.0.0/16")]
    Run {
        /// Where the balancer's frames arrive
        #[arg(long, value_name = "IF")]
        interface: String,
        /// The services' addresses
        #[arg(long = "vip", value_name = "IP", required = true, num_args = 1..)]
        vips: Vec<IpAddr>,
        /// Outer source addresses to accept tunnels from; all others' are dropped and counted
        #[arg(long, value_name = "PREFIX")]
        from: Vec<IpNet>,
        /// How the log is written
        #[arg(long, value_name = "FORMAT", default_value = "auto")]
        log: log::Format,
    },
    /// Undo all that `agent run` did
    Detach,
    /// What the agent has set up, and what it unpacked and dropped
    Status(Output),
}

/// Passes a command on.
pub async fn execute(command: Command, instance: Instance) -> anyhow::Result<()> {
    match command {
        Command::Run { interface, vips, from, log } => {
            log::start(log);
            agent::run(agent::Options { instance, interface, vips, from }).await
        }
        Command::Detach => agent::detach(&instance).await,
        Command::Status(output) => {
            output.print(&agent::status(&instance).await?, |status, _| status.to_string())
        }
    }
}
