//! Debian's kernels: which there are, and those that were fetched.
//!
//! Everything is under one directory of ours, apt's state too: the system's lists, cache and
//! installed packages are neither read nor changed. Of the system's configuration only its mirrors
//! are asked, and how they are reached. A package that was unpacked stays, because Debian's mirrors keep a
//! numbered kernel for some weeks only.

use std::{
    cmp::Reverse,
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};

use crate::process::{captured, run};

/// Where the kernels come from. All of these lists together are 2 MB. What an older Debian still
/// gets is in its security suite; from 6.16 on they are backports.
const SUITES: [(Archive, &str); 4] = [
    (Archive::Security, "bullseye-security"),
    (Archive::Security, "bookworm-security"),
    (Archive::Security, "trixie-security"),
    (Archive::Main, "trixie-backports"),
];

/// One of the two archives that a Debian machine has its packages from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Archive {
    Main,
    Security,
}

impl Archive {
    /// Its mirror, out of apt's list of this machine's own (`URI SUITE`, one a line).
    fn mirror(self, list: &str) -> Option<&str> {
        let mut lines = list.lines().filter_map(|line| line.split_once(' '));
        let is_it = |suite: &str| suite.ends_with("-security") == (self == Self::Security);
        lines.find(|(_, suite)| is_it(suite)).map(|(mirror, _)| mirror)
    }
}

/// Who signs them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The flavour for virtual machines: a third of the generic one's size, starts three times as fast,
/// and has every network module that the tests need.
const FLAVOUR: &str = "-cloud-amd64";

/// Lists younger than this are not asked for again.
const FRESH: Duration = Duration::from_secs(6 * 60 * 60);

/// What a user asks for: `6.1` is the newest 6.1.*, `7.x` the newest 7.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    major: u32,
    minor: Option<u32>,
}

/// A kernel that is on this machine.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// As `uname -r` says it: `6.1.0-56-cloud-amd64`.
    pub release: String,
    /// The package's version: `6.1.192-2`.
    pub version: String,
    /// The compressed image that is booted.
    pub image: PathBuf,
    /// The directory that holds its modules: `…/lib/modules/RELEASE`.
    pub modules: PathBuf,
    /// Where files that are made of it may be kept.
    pub directory: PathBuf,
}

/// A kernel's package in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Offer {
    release: String,
    version: String,
}

/// The kernels of one cache.
#[derive(Debug)]
pub struct Kernels {
    directory: PathBuf,
}

impl Series {
    /// Whether it is older than another: 5.10 than 6.1. `7.x` is as old as 7.0.
    pub fn is_before(&self, major: u32, minor: u32) -> bool {
        (self.major, self.minor.unwrap_or(0)) < (major, minor)
    }

    /// Whether a kernel of this release is one of the series.
    fn holds(&self, release: &str) -> bool {
        let numbers = numbers(release);
        numbers.first() == Some(&u64::from(self.major))
            && self.minor.is_none_or(|minor| numbers.get(1) == Some(&u64::from(minor)))
    }
}

impl FromStr for Series {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| part.parse::<u32>().ok();
        let (major, minor) = text.split_once('.').unwrap_or((text, "x"));
        match (number(major), number(minor)) {
            (Some(major), None) if minor == "x" => Ok(Self { major, minor: None }),
            (Some(major), Some(minor)) => Ok(Self { major, minor: Some(minor) }),
            _ => Err(format!("{text} is no kernel series: say 6.1, 6.12 or 7.x")),
        }
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.minor {
            Some(minor) => write!(f, "{}.{minor}", self.major),
            None => write!(f, "{}.x", self.major),
        }
    }
}

impl Kernels {
    /// In a directory of the caller's, which need not exist.
    pub fn in_directory(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// The newest kernel of a series: fetched, if a mirror has a newer one than the cache.
    ///
    /// # Errors
    /// If neither the mirror nor the cache has one.
    pub fn get(&self, series: &Series) -> Result<Kernel> {
        let offered = self.offered(series);
        let cached = self.cached(series);
        match (offered, cached) {
            (Ok(offer), Some(cached))
                if cached.release == offer.release && cached.version == offer.version =>
            {
                Ok(cached)
            }
            (Ok(offer), cached) => match (self.fetch(&offer), cached) {
                (Ok(kernel), _) => Ok(kernel),
                (Err(error), Some(cached)) => {
                    println!("vm: {error:#}; {} is here", cached.release);
                    Ok(cached)
                }
                (Err(error), None) => Err(error),
            },
            (Err(error), Some(cached)) => {
                println!("vm: {error:#}; {} is here", cached.release);
                Ok(cached)
            }
            (Err(error), None) => Err(error),
        }
    }

    /// The newest that is offered.
    fn offered(&self, series: &Series) -> Result<Offer> {
        self.update()?;
        // A name: `linux-image-6.1.0-56-cloud-amd64`.
        let pattern = format!("^linux-image-{}[.0-9].*{FLAVOUR}$", series.major);
        let found = captured(self.apt("apt-cache")?.args(["--names-only", "search", &pattern]))?;
        let releases = found.lines().filter_map(|line| {
            line.split(' ').next()?.strip_prefix("linux-image-").map(str::to_owned)
        });
        let newest = releases
            // `linux-image-6.12-cloud-amd64` stands for the newest one, and names no release.
            .filter(|release| series.holds(release) && numbers(release).len() > 2)
            .max_by_key(|release| numbers(release));
        let release = newest.with_context(|| format!("the mirror has no kernel {series}"))?;
        let shown =
            captured(self.apt("apt-cache")?.args(["madison", &format!("linux-image-{release}")]))?;
        let version = newest_version(&shown)
            .with_context(|| format!("apt-cache tells no version of {release}"))?;
        Ok(Offer { release, version })
    }

    /// Brings apt's lists up to date.
    fn update(&self) -> Result<()> {
        ensure!(Path::new(KEYRING).is_file(), "no {KEYRING}: kernels are had on Debian only");
        let apt = self.directory.join("apt");
        let (lists, stamp) = (apt.join("state/lists/partial"), apt.join("updated"));
        let age = fs::metadata(&stamp).and_then(|file| file.modified());
        if age.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age < FRESH)) {
            return Ok(());
        }
        for directory in [&lists, &apt.join("cache/archives/partial")] {
            fs::create_dir_all(directory)
                .with_context(|| format!("make {}", directory.display()))?;
        }
        let write = |name: &str, text: &str| {
            fs::write(apt.join(name), text).with_context(|| format!("write apt's {name}"))
        };
        let mirrors = captured(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(REPO_URI) $(SUITE)",
        ]))?;
        let sources = SUITES.map(|(archive, suite)| match archive.mirror(&mirrors) {
            Some(mirror) => format!("deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n"),
            None => String::new(),
        });
        write("sources.list", &sources.concat())?;
        // Nothing is installed.
        write("status", "")?;
        write("apt.conf", &configuration(&apt))?;
        // One suite that is gone shall not hide the others, and for which there is none is said
        // where it is looked for.
        let updated = captured(self.apt("apt-get")?.args(["update", "-q"]));
        if let Err(error) = updated {
            let here = fs::read_dir(apt.join("state/lists")).into_iter().flatten().flatten();
            let lists = here.filter(|file| file.path().to_string_lossy().ends_with("_Packages"));
            ensure!(lists.count() > 0, "the mirror is out of reach: {error:#}");
            println!("vm: {error:#}");
            return Ok(());
        }
        write("updated", "")
    }

    /// An apt program with our configuration.
    fn apt(&self, program: &str) -> Result<Command> {
        let configuration = self.directory.join("apt/apt.conf");
        let configuration = fs::canonicalize(&configuration)
            .with_context(|| format!("find {}", configuration.display()))?;
        let mut command = Command::new(program);
        command.env("APT_CONFIG", configuration).env("LC_ALL", "C");
        Ok(command)
    }

    /// Downloads and unpacks an offer.
    fn fetch(&self, offer: &Offer) -> Result<Kernel> {
        let Offer { release, version } = offer;
        println!("vm: fetching Linux {release} ({version}) …");
        let place = self.directory.join(release);
        // Another version of the same release would mix with it.
        if place.exists() {
            fs::remove_dir_all(&place).with_context(|| format!("empty {}", place.display()))?;
        }
        let downloads = place.join("packages");
        fs::create_dir_all(&downloads).context("make room for packages")?;
        let search = format!("^linux-(binary|modules|base)-{}$", release.replace('+', "\\+"));
        let parts = captured(self.apt("apt-cache")?.args(["--names-only", "search", &search]))?;
        // From 7.0 on the image's package only names these.
        let mut packages: Vec<&str> =
            parts.lines().filter_map(|line| line.split(' ').next()).collect();
        let image = format!("linux-image-{release}");
        if !packages.iter().any(|package| package.starts_with("linux-binary-")) {
            packages = vec![&image];
        }
        captured(self.apt("apt-get")?.current_dir(&downloads).arg("download").args(packages))
            .with_context(|| format!("download Linux {release}"))?;
        for package in fs::read_dir(&downloads).context("list packages")? {
            let package = package.context("list packages")?.path();
            run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(place.join("unpacked")))?;
        }
        fs::remove_dir_all(&downloads).context("remove packages")?;
        let kernel = self.kernel(release)?;
        // Last: what has a version is whole.
        fs::write(place.join("version"), version).context("note the version")?;
        Ok(Kernel { version: version.clone(), ..kernel })
    }

    /// What is unpacked.
    fn kernel(&self, release: &str) -> Result<Kernel> {
        let directory = self.directory.join(release);
        let at = |paths: [String; 2]| {
            paths.into_iter().map(|path| directory.join("unpacked").join(path)).find(|p| p.exists())
        };
        let modules = ["usr/lib", "lib"].map(|lib| format!("{lib}/modules/{release}/kernel"));
        let modules = at(modules).with_context(|| format!("no modules of {release}"))?;
        let modules = modules.parent().unwrap_or(&modules).to_owned();
        let image =
            at([format!("boot/vmlinuz-{release}"), format!("usr/lib/modules/{release}/vmlinuz")]);
        Ok(Kernel {
            release: release.to_owned(),
            version: fs::read_to_string(directory.join("version")).unwrap_or_default(),
            image: image.with_context(|| format!("no image of {release}"))?,
            modules,
            directory,
        })
    }

    /// The newest of a series that was fetched before.
    fn cached(&self, series: &Series) -> Option<Kernel> {
        let entries = fs::read_dir(&self.directory).ok()?.flatten();
        let mut releases: Vec<String> = entries
            .filter(|entry| entry.path().join("version").is_file())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|release| series.holds(release))
            .collect();
        releases.sort_by_key(|release| Reverse(numbers(release)));
        releases.iter().find_map(|release| self.kernel(release).ok())
    }
}

/// What apt is told: everything that it reads and writes is ours.
fn configuration(apt: &Path) -> String {
    let apt = fs::canonicalize(apt).unwrap_or_else(|_| apt.to_owned());
    let apt = apt.display();
    format!(
        "Dir::State \"{apt}/state\";\n\
         Dir::State::status \"{apt}/status\";\n\
         Dir::Cache \"{apt}/cache\";\n\
         Dir::Etc::sourcelist \"{apt}/sources.list\";\n\
         Dir::Etc::sourceparts \"-\";\n\
         Dir::Etc::preferences \"-\";\n\
         Dir::Etc::preferencesparts \"-\";\n\
         APT::Architecture \"amd64\";\n\
         APT::Architectures {{ \"amd64\"; }};\n\
         APT::Sandbox::User \"\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
         Acquire::Retries \"2\";\n\
         Acquire::http::Timeout \"20\";\n"
    )
}

/// The numbers in a release or version, in their order: `6.12.117+deb12-cloud-amd64` is newer than
/// `6.12.94+deb13-cloud-amd64`.
fn numbers(release: &str) -> Vec<u64> {
    let release = release.strip_suffix(FLAVOUR).unwrap_or(release);
    let digits = release.split(|c: char| !c.is_ascii_digit());
    digits.filter_map(|number| number.parse().ok()).collect()
}

/// The newest version that `apt-cache madison` shows.
fn newest_version(shown: &str) -> Option<String> {
    let versions = shown.lines().filter_map(|line| line.split('|').nth(1));
    versions.map(|version| version.trim().to_owned()).max_by_key(|version| numbers(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_a_number_of_two_parts_or_all_of_a_first_part() {
        let series = |text: &str| text.parse::<Series>();
        for (text, shown) in [("6.1", "6.1"), ("7.x", "7.x"), ("7", "7.x"), ("6.12", "6.12")] {
            assert_eq!(series(text).unwrap().to_string(), shown);
        }
        for wrong in ["", "x", "6.", "6.1.2", "linux", "-1.2"] {
            assert!(series(wrong).is_err(), "{wrong}");
        }
        assert!(series("5.10").unwrap().is_before(6, 1));
        assert!(!series("6.1").unwrap().is_before(6, 1));
        assert!(!series("7.x").unwrap().is_before(6, 1));
    }

    #[test]
    fn a_release_is_of_its_series_alone() {
        let holds = |series: &str, release| series.parse::<Series>().unwrap().holds(release);
        assert!(holds("6.1", "6.1.0-56-cloud-amd64"));
        assert!(!holds("6.1", "6.12.117+deb12-cloud-amd64"));
        assert!(!holds("6.1", "6.16.3+deb13-cloud-amd64"));
        assert!(holds("7.x", "7.3.4+deb13-cloud-amd64"));
        assert!(!holds("7.x", "6.7.0-cloud-amd64"));
    }

    #[test]
    fn kernels_come_from_this_machines_own_mirrors() {
        let list = "http://mirror/debian-security/ oldstable-security\n\
                    http://mirror/debian/ oldstable\nhttp://mirror/debian/ oldstable-updates\n";
        assert_eq!(Archive::Main.mirror(list), Some("http://mirror/debian/"));
        assert_eq!(Archive::Security.mirror(list), Some("http://mirror/debian-security/"));
        assert_eq!(Archive::Security.mirror("http://mirror/debian/ stable\n"), None);
    }

    #[test]
    fn the_newest_is_told_by_its_numbers() {
        let releases =
            ["6.1.0-9-cloud-amd64", "6.1.0-56-cloud-amd64", "6.1.0-0.deb11.52-cloud-amd64"];
        let newest = releases.into_iter().max_by_key(|release| numbers(release));
        assert_eq!(newest, Some("6.1.0-56-cloud-amd64"));
        let shown = "linux-image-6.1.0-56-cloud-amd64 | 6.1.176-1 | http://mirror bookworm\n\
                     linux-image-6.1.0-56-cloud-amd64 | 6.1.192-2 | http://mirror security\n";
        assert_eq!(newest_version(shown).as_deref(), Some("6.1.192-2"));
        assert_eq!(newest_version(""), None);
    }
}
