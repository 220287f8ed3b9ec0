//! A real nginx as a backend: one process, its own configuration and logs.

use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result};

use super::{DEADLINE, Family, Host, Process, client, until};

/// A running nginx; dropping it stops it.
#[derive(Debug)]
pub struct Nginx {
    /// Stopped, killed and asked for its log by tests.
    pub process: Process,
    directory: PathBuf,
}

impl Nginx {
    /// What `/file` answers with: larger than any socket's buffers.
    pub const FILE_BYTES: usize = 8 << 20;

    /// What `/slow` sends each second of the same file.
    pub const SLOW_BYTES_A_SECOND: usize = 2 << 20;

    /// Starts nginx on `host` and waits until it serves. On every address and each of `ports`:
    ///
    /// - any path answers with the host's role in the body and in `X-Backend`;
    /// - `/healthz` answers `ok`;
    /// - `/file` is [`Self::FILE_BYTES`] long, `/slow` the same at [`Self::SLOW_BYTES_A_SECOND`];
    /// - `PUT /put/NAME` keeps what it is sent: [`Self::kept`].
    pub fn start(host: &Host, ports: &[u16]) -> Result<Self> {
        let directory = host.directory("nginx")?;
        let at = directory.display();
        let listen = ports.iter().map(|port| {
            format!("listen {port} backlog=4096; listen [::]:{port} backlog=4096 ipv6only=on; ")
        });
        let config = format!(
            r#"# One process, so that killing it leaves no worker that still answers.
daemon off;
master_process off;
pid {at}/nginx.pid;
error_log {at}/error.log info;
events {{ worker_connections 8192; }}
http {{
    access_log {at}/access.log;
    client_body_temp_path {at}/body;
    proxy_temp_path {at}/proxy;
    fastcgi_temp_path {at}/fastcgi;
    uwsgi_temp_path {at}/uwsgi;
    scgi_temp_path {at}/scgi;
    default_type text/plain;
    server {{
        {listen}
        root {at};
        add_header X-Backend {name} always;
        location / {{ return 200 "{name}\n"; }}
        location = /healthz {{ return 200 "ok\n"; }}
        location = /file {{ }}
        location /put/ {{ dav_methods PUT; client_max_body_size 0; }}
        location = /slow {{ alias {at}/file; limit_rate {rate}; }}
    }}
}}
"#,
            name = host.role(),
            listen = listen.collect::<String>(),
            rate = Self::SLOW_BYTES_A_SECOND,
        );
        fs::write(directory.join("nginx.conf"), config).context("write nginx.conf")?;
        fs::create_dir(directory.join("put")).context("make nginx's directory")?;
        fs::write(directory.join("file"), Self::file()).context("write nginx's file")?;

        let mut command = host.command("nginx");
        command
            .arg("-c")
            .arg(directory.join("nginx.conf"))
            .arg("-e")
            .arg(directory.join("error.log"));
        let name = format!("nginx on {}", host.role());
        let mut process = Process::start(&name, command, &directory.join("output.log"))?;
        for port in ports {
            let address = SocketAddr::new(host.address(Family::V4), *port);
            until(&format!("{name} to serve"), DEADLINE, || {
                let serves =
                    host.enter(|| client::fetch(address, "/healthz", Duration::from_secs(1)));
                (serves.is_ok() || !process.is_running()).then_some(())
            })
            .with_context(|| process.log())?;
        }
        anyhow::ensure!(process.is_running(), "{name} ended: {}", process.log());
        Ok(Self { process, directory })
    }

    /// What `/file` and `/slow` answer with: no two places look alike, so lost or repeated
    /// bytes show.
    pub fn file() -> Vec<u8> {
        (0..Self::FILE_BYTES as u64 / 8).flat_map(u64::to_be_bytes).collect()
    }

    /// What a client has `PUT` to `/put/NAME`.
    pub fn kept(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.directory.join("put").join(name)).ok()
    }

    /// One line a request.
    pub fn access_log(&self) -> String {
        fs::read_to_string(self.directory.join("access.log")).unwrap_or_default()
    }
}
