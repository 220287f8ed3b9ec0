//! The intent on disk: `state.json`, so that what was said at run time outlives the daemon.
//!
//! Written whole beside the old one, flushed, then renamed: there is always one that is whole.
//! One that can't be read is set aside, and never keeps anything from forwarding.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Declared, Intent, Leaving, Refusal, Said, Take, guard};
use crate::{
    config::{self, BackendSpec, Problem, ServiceSpec},
    drain::{Admin, Moment},
    model::{Backend, Desired, Service},
    whole_file,
};

/// Its name in the state directory.
const FILE: &str = "state.json";
/// Of this file's shape.
const VERSION: u32 = 1;

/// Why a file was set aside.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// No JSON, or other fields.
    #[error("it is damaged ({0})")]
    Json(#[from] serde_json::Error),
    /// From a newer Sluice.
    #[error("a newer sluice wrote it (version {0}, this one reads {VERSION})")]
    Version(u32),
    /// What it says is not valid.
    #[error("what it says is not valid ({0})")]
    Problem(#[from] Problem),
    /// The file it rests on is not valid.
    #[error("what it says is not valid ({0})")]
    Config(#[from] config::Error),
    /// Nobody could have said so.
    #[error("what it says is not valid ({0})")]
    Refused(#[from] Refusal),
}

/// The whole file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    generation: u64,
    /// SHA-256 of the `--config` file when it was last taken up.
    config: String,
    declared: DeclaredFile,
    #[serde(default)]
    services_added: Vec<ServiceSpec>,
    #[serde(default)]
    services_removed: Vec<String>,
    #[serde(default)]
    backends: Vec<SaidFile>,
    #[serde(default)]
    leaving: Vec<LeavingFile>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeclaredFile {
    name: String,
    text: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SaidFile {
    service: String,
    backend: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    added: Option<BackendSpec>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    removed: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<u16>,
    admin: Admin,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LeavingFile {
    service: ServiceSpec,
    backend: BackendSpec,
    admin: Admin,
}

/// Where an instance's intent is kept.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
    /// SHA-256 of the `--config` file as last taken up.
    config: String,
}

/// What the start made of the file and of what was kept.
pub struct Restored {
    /// What is wanted.
    pub intent: Intent,
    /// Where it is kept from now on.
    pub store: Store,
    /// What an operator should know, one sentence each.
    pub notes: Vec<String>,
}

impl Store {
    /// Takes up the `--config` file on top of, or below, what is kept in `directory`.
    ///
    /// A file that has not changed since it was last taken up changes nothing: what was applied
    /// since, from whatever file, still holds. One that has changed goes below what was said at
    /// run time.
    ///
    /// # Errors
    /// If the file is not valid. What is kept is never a reason.
    pub fn restore(
        directory: &Path,
        name: &str,
        text: &str,
        now: Moment,
    ) -> Result<Restored, config::Error> {
        let declared = Declared::parse(name, text)?;
        let mut store = Self { directory: directory.to_owned(), config: String::new() };
        let mut notes = Vec::new();
        let kept = store.read(&mut notes);
        let config = digest(text);
        let intent = match kept {
            None => Intent::new(declared),
            Some((intent, taken_up)) if taken_up == config => {
                if intent.declared.text != text {
                    notes.push(format!(
                        "{} was applied and holds; {name} is taken up on SIGHUP, by `sluice apply`, \
                         or when it has changed at the next start",
                        intent.declared.name
                    ));
                }
                intent
            }
            Some((intent, _)) => below(&intent, declared, now, &mut notes),
        };
        store.config = config;
        Ok(Restored { intent, store, notes })
    }

    /// Remembers that the `--config` file, with this text, has been taken up.
    pub fn took_up(&mut self, text: &str) {
        self.config = digest(text);
    }

    fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    /// What is kept, and for which `--config` file; what can't be read is set aside.
    fn read(&self, notes: &mut Vec<String>) -> Option<(Intent, String)> {
        let path = self.path();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                notes.push(format!(
                    "can't read {}: {error}; what was changed at run time is lost until it can be",
                    path.display()
                ));
                return None;
            }
        };
        match understand(&bytes) {
            Ok(kept) => Some(kept),
            Err(damage) => {
                let aside = path.with_extension(format!("json.damaged-{}", Moment::now().0));
                let place = match fs::rename(&path, &aside) {
                    Ok(()) => format!("it is now {}", aside.display()),
                    Err(error) => format!("and can't be set aside: {error}"),
                };
                // It may quote what is in the file, which is anything.
                let damage = damage.to_string().replace(char::is_control, " ");
                notes.push(format!(
                    "{} was not used: {damage}; {place}. Changes made at run time are forgotten: \
                     drain and disable again what should be",
                    path.display()
                ));
                None
            }
        }
    }

    /// Keeps an intent.
    ///
    /// # Errors
    /// If the disk is full or read-only; what was kept before is still there, whole.
    pub fn keep(&self, intent: &Intent) -> io::Result<()> {
        let json = serde_json::to_vec(&file(intent, &self.config))?;
        whole_file::write(&self.path(), &json)
    }
}

/// Forgets what is kept: the next start knows its file alone.
///
/// # Errors
/// If the file can't be removed.
pub fn forget(directory: &Path) -> io::Result<()> {
    match fs::remove_file(directory.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A file that has changed, below what was said at run time. Additions that it does not allow
/// are given up.
fn below(intent: &Intent, declared: Declared, now: Moment, notes: &mut Vec<String>) -> Intent {
    let next = intent.declare(declared.clone(), Take::Below, now);
    let fits = config::export(&next.desired())
        .map_err(|error| error.to_string())
        .and_then(|text| config::parse(&text, "state").map_err(|error| error.to_string()));
    match fits {
        Ok(_) => next,
        Err(why) => {
            notes.push(format!(
                "services and backends added at run time were given up: they do not go with {} \
                 ({why})",
                declared.name
            ));
            intent.declare(declared, Take::Apply, now)
        }
    }
}

fn digest(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn file(intent: &Intent, config: &str) -> File {
    let said = |((service, backend), said): (&(String, String), &Said)| SaidFile {
        service: service.clone(),
        backend: backend.clone(),
        added: said.added.as_ref().map(written),
        removed: said.removed,
        weight: said.weight,
        admin: said.admin,
    };
    let leaving = |leaving: &Leaving| LeavingFile {
        service: ServiceSpec::of(&leaving.service),
        backend: written(&leaving.backend),
        admin: leaving.backend.admin,
    };
    File {
        version: VERSION,
        generation: intent.generation,
        config: config.to_owned(),
        declared: DeclaredFile {
            name: intent.declared.name.clone(),
            text: intent.declared.text.clone(),
        },
        services_added: intent.services_added.values().map(ServiceSpec::of).collect(),
        services_removed: intent.services_removed.iter().cloned().collect(),
        backends: intent.backends.iter().map(said).collect(),
        leaving: intent.leaving.iter().map(leaving).collect(),
    }
}

/// A backend with every field, for its service's VIP is not at hand.
fn written(backend: &Backend) -> BackendSpec {
    BackendSpec {
        name: backend.name.clone(),
        address: backend.address.to_string(),
        port: (backend.port != 0).then(|| backend.port.into()),
        weight: Some(backend.weight.into()),
        backup: backend.backup.then_some(true),
    }
}

fn understand(bytes: &[u8]) -> Result<(Intent, String), Damage> {
    #[derive(Deserialize)]
    struct OfVersion {
        version: u32,
    }
    let OfVersion { version } = serde_json::from_slice(bytes)?;
    if version != VERSION {
        return Err(Damage::Version(version));
    }
    let file: File = serde_json::from_slice(bytes)?;
    let declared = Declared::parse(&file.declared.name, &file.declared.text)?;
    let alone = Desired { services: Vec::new(), ..declared.desired.clone() };
    let mut intent = Intent::new(declared);
    intent.generation = file.generation;
    intent.services_removed = file.services_removed.into_iter().collect();
    for spec in &file.services_added {
        let service = config::service(&alone, spec)?;
        intent.services_added.insert(service.name.clone(), service);
    }
    for said in file.backends {
        let added = match &said.added {
            Some(spec) => {
                let base = intent.services_added.get(&said.service);
                let base = base.or_else(|| intent.declared.desired.service(&said.service));
                // Its service is gone with the file that had it.
                let Some(base) = base else { continue };
                Some(of(&alone, base, spec)?)
            }
            None => None,
        };
        // Here, not when all is put together: its backend may be among those who leave by then.
        said.weight.map_or(Ok(()), guard::weight)?;
        let what = Said { added, removed: said.removed, weight: said.weight, admin: said.admin };
        intent.backends.insert((said.service, said.backend), what);
    }
    for leaving in file.leaving {
        let mut service = config::service(&alone, &leaving.service)?;
        service.leaving = true;
        let mut backend = of(&alone, &service, &leaving.backend)?;
        backend.leaving = true;
        backend.admin = leaving.admin;
        intent.leaving.push(Leaving { service, backend });
    }
    Ok((intent, file.config))
}

/// A backend of a service, whoever else is in it.
fn of(alone: &Desired, service: &Service, spec: &BackendSpec) -> Result<Backend, Problem> {
    let bare = Service { backends: Vec::new(), ..service.clone() };
    config::backend(alone, &bare, spec)
}
