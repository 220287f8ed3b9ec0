//! A real OpenSSH server as a backend, with keys of its own that go with the laboratory.

use std::{
    fs, io,
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result};

use super::{DEADLINE, Family, Host, Process, check, until};

/// A running sshd, for root and one key; dropping it stops it.
#[derive(Debug)]
pub struct SshServer {
    _process: Process,
}

impl SshServer {
    /// Starts it on every address of `host`. `key` is a private key's file, which is made if it is
    /// not there: it opens this server, and is the server's own too, so that any number of them
    /// look alike to clients.
    pub fn start(host: &Host, port: u16, key: &Path) -> Result<Self> {
        if !key.exists() {
            let mut generate = Command::new("ssh-keygen");
            generate.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(key);
            let output = generate.output().context("run ssh-keygen (openssh-client)")?;
            check(&output, "make a key")?;
        }
        // What it wants for its unprivileged half, wherever it is told to find all else.
        fs::create_dir("/run/sshd").or_else(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Ok(()),
            _ => Err(error).context("make /run/sshd"),
        })?;
        let directory = host.directory("ssh")?;
        let config = directory.join("sshd_config");
        let key = key.display();
        let lines = format!(
            "Port {port}\nHostKey {key}\nAuthorizedKeysFile {key}.pub\nPidFile none\nUsePAM no\n\
             PermitRootLogin prohibit-password\nPasswordAuthentication no\nStrictModes no\n"
        );
        fs::write(&config, lines).context("write sshd_config")?;
        let mut command = host.command("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f"]).arg(&config);
        let name = format!("sshd on {}", host.role());
        let mut process = Process::start(&name, command, &directory.join("log"))?;
        let address = SocketAddr::new(host.address(Family::V4), port);
        until(&format!("{name} to serve"), DEADLINE, || {
            let serves = host.enter(|| TcpStream::connect(address).is_ok());
            (serves || !process.is_running()).then_some(())
        })?;
        anyhow::ensure!(process.is_running(), "{name} ended: {}", process.log());
        Ok(Self { _process: process })
    }

    /// `ssh` from `client` to `server` with this key; what it shall do there is to be added.
    pub fn client(client: &Host, server: SocketAddr, key: &Path) -> Command {
        let mut command = client.command("ssh");
        command.args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]);
        command.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]);
        command.arg("-i").arg(key).arg("-p").arg(server.port().to_string());
        command.arg(format!("root@{}", server.ip()));
        command
    }
}
