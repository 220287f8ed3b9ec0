//! The command line: what can be asked, who is asked, and how the answer is printed.
//!
//! People read text and scripts read `--json`; both come from the same structs. Everything is
//! asked over the control socket, but for `run`, `check` and what works without a daemon:
//! `direct`, `explain`, `trace`, `upgrade` and `agent`.

mod agent;
mod change;
mod check;
mod command;
mod differences;
mod direct;
mod doctor;
mod drain;
mod events;
mod explain;
mod figures;
mod flows;
mod log;
mod recorder;
mod render;
mod status;
mod table;
mod top;
mod trace;
mod upgrade;
mod when;

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::SystemTime,
};

use anyhow::Context;
use clap::{Args, CommandFactory, Parser};
use serde::Serialize;

use self::{
    command::{BackendCommand, Cli, Command, ServiceCommand},
    table::Palette,
};
use crate::{
    control::{
        api,
        client::{self, Client},
    },
    daemon,
    instance::Instance,
};

/// How a command prints.
#[derive(Args)]
struct Output {
    /// Print JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// Runs the command that the arguments name; wrong usage ends the process with 2.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match tokio::runtime::Runtime::new().context("start the async runtime") {
        Ok(runtime) => match runtime.block_on(execute(cli)) {
            Ok(code) => code,
            Err(error) => failed(&error),
        },
        Err(error) => failed(&error),
    }
}

/// One line: what was attempted, and why it failed.
fn failed(error: &anyhow::Error) -> ExitCode {
    let line = format!("{error:#}").replace('\n', " ");
    // Nobody is left to tell that stderr is closed.
    let _ = writeln!(io::stderr(), "error: {line}");
    ExitCode::FAILURE
}

async fn execute(cli: Cli) -> anyhow::Result<ExitCode> {
    let instance = cli.instance;
    let client = Client::new(&instance);
    match cli.command {
        Command::Run { config, log } => {
            log::start(log);
            daemon::run(instance, config).await?;
        }
        Command::Check { file, output } => return check::check(&file, &output),
        Command::Status(output) => return show_status(&client, &instance, &output).await,
        Command::Top(arguments) => top::execute(&client, &arguments).await?,
        Command::Plan { file, output } => return change::plan(&client, &file, &output).await,
        Command::Apply { file, force, output } => {
            return change::apply(&client, &file, &force, &output).await;
        }
        Command::Export(output) => {
            output.print(&client.export().await?, |exported, _| exported.text.clone())?;
        }
        Command::CheckReady => {
            let status = client.status().await?;
            if !status.ready {
                anyhow::bail!("not forwarding: {}", status.problems.join("; "));
            }
            print(b"ready\n")?;
        }
        Command::Service(command) => return about_service(&client, command).await,
        Command::Backend(command) => return about_backend(&client, command).await,
        Command::Flows(arguments) => flows::execute(&client, &arguments).await?,
        Command::Explain(arguments) => explain::execute(&client, &instance, &arguments).await?,
        Command::Trace(arguments) => return trace::execute(&client, &instance, &arguments).await,
        Command::Reasons { all, interface, output } => {
            let reasons = client.reasons().await?;
            let reasons = match interface {
                Some(name) => reasons.of_interface(&name).map_err(anyhow::Error::msg)?,
                None => reasons,
            };
            output.print(&reasons, |reasons, palette| render::reasons(reasons, all, palette))?;
        }
        Command::Doctor(output) => return doctor::execute(&client, &output).await,
        Command::Upgrade(arguments) => return upgrade::execute(&arguments, &instance),
        Command::Events(arguments) => {
            return events::execute(&client, &instance, &arguments).await;
        }
        Command::Recorder(arguments) => return recorder::execute(&instance, &arguments),
        Command::Detach => direct::detach(&instance).await?,
        Command::Agent(command) => agent::execute(command, instance).await?,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "sluice", &mut script);
            print(&script)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The status; and where no daemon tells it, what the kernel does.
async fn show_status(
    client: &Client,
    instance: &Instance,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let screen = status::Screen::of_stdout(io::stdout().is_terminal());
    match client.status().await {
        Ok(told) => {
            let now = SystemTime::now();
            output.print(&told, |told, palette| status::status(told, now, screen, palette))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            if matches!(error, client::Error::NotRunning { .. }) && !output.json {
                let orphan = direct::look(instance).await;
                let now = SystemTime::now();
                print(status::without_daemon(&orphan, now, screen, palette()).as_bytes())?;
            }
            Err(error.into())
        }
    }
}

async fn about_service(client: &Client, command: ServiceCommand) -> anyhow::Result<ExitCode> {
    match command {
        ServiceCommand::List(output) => {
            output.print(&client.status().await?.services, |services, palette| {
                render::services(services, palette)
            })?;
            Ok(ExitCode::SUCCESS)
        }
        ServiceCommand::Add(new) => change::add_service(client, *new).await,
        ServiceCommand::Remove { name, force, output } => {
            let remove = api::Change::RemoveService { service: name };
            change::one(client, remove, force, &output).await
        }
    }
}

async fn about_backend(client: &Client, command: BackendCommand) -> anyhow::Result<ExitCode> {
    use api::Change;
    let unforced = change::Force::default();
    match command {
        BackendCommand::List { service, output } => {
            let mut services = client.status().await?;
            if let Some(name) = service {
                let service = services.service(&name).map_err(anyhow::Error::msg)?.clone();
                services.services = vec![service];
            }
            output.print(&backends(&services.services), |_, palette| {
                render::backends(&services.services, services.doubt(), palette)
            })?;
            Ok(ExitCode::SUCCESS)
        }
        BackendCommand::Add(new) => change::add_backend(client, new).await,
        BackendCommand::Drain(new) => change::drain(client, new).await,
        BackendCommand::Remove { which, force, output } => {
            let remove = |target| Change::RemoveBackend { target };
            change::about(client, which, remove, &force, &output).await
        }
        BackendCommand::Enable { which, output } => {
            let enable = |target| Change::Enable { target };
            change::about(client, which, enable, &unforced, &output).await
        }
        BackendCommand::Disable { which, force, output } => {
            let disable = |target| Change::Disable { target };
            change::about(client, which, disable, &force, &output).await
        }
        BackendCommand::Weight { service, backend, weight, force, output } => {
            let target = api::Target { service: Some(service), backend };
            change::one(client, Change::Weight { target, weight }, force.force, &output).await
        }
    }
}

/// A backend in a list of its own.
#[derive(Serialize)]
struct ListedBackend<'a> {
    service: &'a str,
    #[serde(flatten)]
    backend: &'a api::Backend,
}

fn backends(services: &[api::Service]) -> Vec<ListedBackend<'_>> {
    services
        .iter()
        .flat_map(|service| {
            service.backends.iter().map(|backend| ListedBackend { service: &service.name, backend })
        })
        .collect()
}

impl Output {
    /// Prints one struct: as JSON, or as `render` has it for people.
    fn print<T: Serialize>(
        &self,
        said: &T,
        render: impl FnOnce(&T, Palette) -> String,
    ) -> anyhow::Result<()> {
        if self.json {
            let mut json = serde_json::to_vec(said).context("write JSON")?;
            json.push(b'\n');
            print(&json)
        } else {
            print(render(said, palette()).as_bytes())
        }
    }
}

fn palette() -> Palette {
    Palette { colours: colours(&io::stdout()) }
}

/// Colours only where somebody sees them and nobody said no (<https://no-color.org>).
fn colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn print(text: &[u8]) -> anyhow::Result<()> {
    print_to(io::stdout().lock(), text)
}

/// A reader who has seen enough (`| head`) is no error.
fn print_to(mut reader: impl Write, text: &[u8]) -> anyhow::Result<()> {
    match reader.write_all(text).and_then(|()| reader.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("write to stdout")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
