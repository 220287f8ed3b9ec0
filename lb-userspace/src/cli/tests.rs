use clap::error::ErrorKind;

use super::*;
use crate::control::sample;

fn parsed(line: &str) -> Result<Cli, ErrorKind> {
    Cli::try_parse_from(line.split_whitespace()).map_err(|error| error.kind())
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_documented_command_is_understood() {
    let lines = [
        "sluice run --config /etc/sluice/sluice.toml",
        "sluice run --config sluice.toml --log json",
        "sluice check sluice.toml",
        "sluice check sluice.toml --json",
        "sluice status --json --instance edge-1",
        "sluice top",
        "sluice top --interval 500ms",
        "sluice --instance edge-1 status",
        "sluice plan sluice.toml --json",
        "sluice apply sluice.toml --force",
        "sluice export",
        "sluice check-ready",
        "sluice events",
        "sluice events --since 10m --follow --json",
        "sluice events --since 14:03 --service web --backend web-1 --kind health --limit 20",
        "sluice recorder",
        "sluice recorder --at 14:03 --window 2m --service web --json",
        "sluice recorder --at 2026-11-21T14:03:00Z --backend web-1 --plot minute.svg",
        "sluice service list",
        "sluice service add api 203.0.113.20:443 --forwarding ipip --min-available 2",
        "sluice service add api 203.0.113.20:443 --via backend --interval 5s",
        "sluice service add api 203.0.113.20:443 --check https --path /healthz --host api.example \
         --server-name api.example --ca-file /etc/sluice/ca.pem",
        "sluice service remove api --force",
        "sluice backend add web web-3 10.0.0.13 --weight 50 --port 80 --backup",
        "sluice backend remove web web-3 --force",
        "sluice backend drain web web-1 --deadline 5m --wait --json",
        "sluice backend drain --all-services host-7 --wait",
        "sluice backend enable web web-1",
        "sluice backend enable --all-services host-7",
        "sluice backend disable web web-1 --force",
        "sluice backend weight web web-1 10",
        "sluice backend list",
        "sluice backend list web --json",
        "sluice flows --service web --backend web-1 --client 2001:db8::1 --limit 0",
        "sluice flows --sort age --state old --client 198.51.100.0/24",
        "sluice flows --count --json",
        "sluice flows --count --limit 5",
        "sluice explain 198.51.100.7:40001 203.0.113.10:80",
        "sluice explain [2001:db8::7]:40001 [2001:db8::10]:80 --ack --json",
        "sluice reasons --all",
        "sluice doctor --json",
        "sluice detach",
        "sluice upgrade",
        "sluice upgrade --watch 10 --force --json",
        "sluice completions zsh",
        "sluice agent run --interface eth0 --vip 203.0.113.10 2001:db8::10 --from 10.255.0.0/16",
        "sluice agent run --interface eth0 --vip 203.0.113.10 --vip 203.0.113.11",
        "sluice agent detach",
        "sluice agent status --json",
    ];
    for line in lines {
        assert!(parsed(line).is_ok(), "{line}");
    }
}

#[test]
fn wrong_usage_is_told_from_failure() {
    let cases = [
        ("sluice", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
        ("sluice start", ErrorKind::InvalidSubcommand),
        ("sluice run", ErrorKind::MissingRequiredArgument),
        ("sluice run --json --config x", ErrorKind::UnknownArgument),
        ("sluice --instance .. status", ErrorKind::ValueValidation),
        ("sluice --instance a/b status", ErrorKind::ValueValidation),
        ("sluice flows --client example.com", ErrorKind::ValueValidation),
        ("sluice flows --sort size", ErrorKind::InvalidValue),
        ("sluice flows --count --sort age", ErrorKind::ArgumentConflict),
        ("sluice flows --limit 100001", ErrorKind::ValueValidation),
        ("sluice explain 198.51.100.7:40001", ErrorKind::MissingRequiredArgument),
        ("sluice explain 198.51.100.7 203.0.113.10:80", ErrorKind::ValueValidation),
        ("sluice explain 198.51.100.7:0 203.0.113.10:80", ErrorKind::ValueValidation),
        ("sluice explain 1.2.3.4:5 1.2.3.4:6 --syn --ack", ErrorKind::ArgumentConflict),
        ("sluice events --kind weather", ErrorKind::InvalidValue),
        ("sluice recorder --at soon", ErrorKind::ValueValidation),
        ("sluice recorder --json --plot x.svg", ErrorKind::ArgumentConflict),
        ("sluice recorder --at soon", ErrorKind::ValueValidation),
        ("sluice recorder --json --plot x.svg", ErrorKind::ArgumentConflict),
        ("sluice backend drain", ErrorKind::MissingRequiredArgument),
        ("sluice backend drain web", ErrorKind::MissingRequiredArgument),
        ("sluice backend drain web web-1 --all-services x", ErrorKind::ArgumentConflict),
        ("sluice backend drain web web-1 --deadline soon", ErrorKind::ValueValidation),
        ("sluice backend weight web web-1", ErrorKind::MissingRequiredArgument),
        ("sluice backend weight web web-1 many", ErrorKind::ValueValidation),
        (
            "sluice service add api 203.0.113.20:443 --path /healthz",
            ErrorKind::MissingRequiredArgument,
        ),
        ("sluice upgrade --watch 0", ErrorKind::ValueValidation),
        ("sluice top --interval 0s", ErrorKind::ValueValidation),
        ("sluice agent run --interface eth0", ErrorKind::MissingRequiredArgument),
        (
            "sluice agent run --interface eth0 --vip 1.2.3.4 --from 1.2.3.4",
            ErrorKind::ValueValidation,
        ),
    ];
    for (line, kind) in cases {
        assert_eq!(parsed(line).err(), Some(kind), "{line}");
    }
}

#[test]
fn a_reader_who_leaves_is_no_error() {
    struct Refusing(io::ErrorKind);
    impl Write for Refusing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    assert!(print_to(Refusing(io::ErrorKind::BrokenPipe), b"text").is_ok());
    assert!(print_to(Refusing(io::ErrorKind::StorageFull), b"text").is_err());
}

#[test]
fn backends_are_listed_with_their_service() {
    let services = sample::status().services;
    let json = serde_json::to_value(backends(&services)).expect("JSON");
    assert_eq!(json[1]["service"], "web");
    assert_eq!(json[1]["name"], "web-1");
    assert_eq!(json[1]["active_flows"], 12);
}
