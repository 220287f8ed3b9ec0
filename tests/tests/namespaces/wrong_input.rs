//! Whatever is wrong, one clear message names it, and nothing is left half attached.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
};

use sluice_tests::lab::{
    DEADLINE, Family, Host, Lab, Plan, dataplane, is_privileged, service, sluice_binary, until,
};

use crate::scene::{VIP4, VIP6, address};

#[test]
fn a_wrong_configuration_is_refused_with_the_place_and_the_thing() {
    if !is_privileged() {
        return;
    }
    let lab = Lab::start(Plan::default()).unwrap();
    let web = |name: &str, vip: &str, forwarding: &str, family: Family| {
        service(name, address(vip), forwarding, lab.backends(), family)
    };
    let head = dataplane(&["eth0"]);
    let good = head.clone() + &web("web", VIP4, "l2", Family::V4);
    let cases: [(&str, String, &[&str]); 11] = [
        ("unknown field", good.clone() + "wieght = 3\n", &[":15:", "wieght"]),
        ("no TOML", good.clone() + "[[[\n", &[":15:"]),
        ("no Ethernet", good.replace("eth0", "lo"), &["lo", "not Ethernet"]),
        ("absent interface", good.replace("eth0", "eth7"), &["eth7"]),
        ("second is absent", good.replace("[\"eth0\"]", "[\"eth0\", \"eth7\"]"), &["eth7"]),
        ("duplicate VIP", good.clone() + &web("other", VIP4, "ipip", Family::V4), &[":17:", VIP4]),
        ("duplicate name", good.clone() + &web("web", VIP6, "ipip", Family::V4), &[":16:", "web"]),
        ("duplicate backend", good.replace("web-2", "web-1"), &["web-1"]),
        (
            "family that l2 can't carry",
            head.clone() + &web("web", VIP4, "l2", Family::V6),
            &["web-1", "IPv6", VIP4],
        ),
        ("no address", good.replace("198.18.1.12", "198.18.1.312"), &["198.18.1.312"]),
        ("no interfaces", web("web", VIP4, "l2", Family::V4), &["interface"]),
    ];
    for (case, config, named) in cases {
        let path = lab.directory().join("sluice.toml");
        fs::write(&path, config).unwrap();
        let mut command = lab.balancer().sluice().unwrap();
        command.arg("run").arg("--config").arg(&path);
        refused(case, lab.balancer(), command, 1, named);
    }
}

#[test]
fn a_missing_configuration_file_is_named() {
    if !is_privileged() {
        return;
    }
    let lab = Lab::start(Plan { backends: 0, ..Plan::default() }).unwrap();
    let mut command = lab.balancer().sluice().unwrap();
    command.args(["run", "--config", "/nonexistent/sluice.toml"]);
    refused("no file", lab.balancer(), command, 1, &["/nonexistent/sluice.toml", "No such file"]);
}

#[test]
fn wrong_usage_exits_with_2() {
    if !is_privileged() {
        return;
    }
    let lab = Lab::start(Plan { backends: 0, ..Plan::default() }).unwrap();
    for arguments in [&["run"][..], &["walk"], &["--instance", "../etc", "status"]] {
        let output = lab.balancer().sluice().unwrap().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_command_without_a_daemon_says_so() {
    if !is_privileged() {
        return;
    }
    let lab = Lab::start(Plan { backends: 0, ..Plan::default() }).unwrap();
    let mut command = lab.balancer().sluice().unwrap();
    command.arg("status");
    refused("no daemon", lab.balancer(), command, 1, &[lab.balancer().name()]);
}

#[test]
fn without_privileges_the_missing_one_is_named() {
    if !is_privileged() {
        return;
    }
    let lab = Lab::start(Plan { backends: 0, ..Plan::default() }).unwrap();
    // Where anybody may read and run them.
    let public = tempfile::tempdir().unwrap();
    let mode = |path: &Path| fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    let [binary, config] = ["sluice", "sluice.toml"].map(|name| public.path().join(name));
    fs::copy(sluice_binary().unwrap(), &binary).unwrap();
    fs::write(&config, dataplane(&["eth0"])).unwrap();
    [public.path(), &binary, &config].into_iter().for_each(mode);

    let mut command = lab.balancer().command("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(binary)
        .args(["--instance", lab.balancer().name(), "run", "--config"])
        .arg(config);
    refused("nobody", lab.balancer(), command, 1, &["root"]);
}

#[test]
fn without_bpffs_the_command_that_mounts_it_is_named() {
    if !is_privileged() {
        return;
    }
    let lab = Lab::start(Plan { backends: 0, ..Plan::default() }).unwrap();
    let config = lab.directory().join("sluice.toml");
    fs::write(&config, dataplane(&["eth0"])).unwrap();
    let mut command = lab.balancer().command("unshare");
    command
        .args(["--mount", "--propagation=private", "--", "sh", "-c"])
        .arg("umount /sys/fs/bpf && exec \"$0\" \"$@\"")
        .arg(sluice_binary().unwrap())
        .args(["--instance", lab.balancer().name(), "run", "--config"])
        .arg(config);
    refused("no bpffs", lab.balancer(), command, 1, &["/sys/fs/bpf", "mount -t bpf"]);
}

/// `command` ends by itself with `code`, and its last words (log lines may come before) are one
/// error that names all of `named`; nothing is attached to `host`.
pub fn refused(case: &str, host: &Host, mut command: Command, code: i32, named: &[&str]) {
    let output = end(case, command.stdin(Stdio::null()));
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{case}: {complaint}");
    let errors = complaint.lines().filter(|line| line.starts_with("error: ")).count();
    let last = complaint.lines().last().unwrap_or_default();
    assert!(errors == 1 && last.starts_with("error: "), "{case}: one error:\n{complaint}");
    for name in named {
        assert!(last.contains(name), "{case}: {name:?} is not in: {complaint}");
    }
    assert!(host.xdp("eth0").unwrap().is_none(), "{case}: XDP is attached");
    let pins = Path::new("/sys/fs/bpf/sluice").join(host.name());
    assert!(!pins.exists(), "{case}: {} exists", pins.display());
    let owned = host.addresses("lo").unwrap();
    assert!(!owned.contains(&address(VIP4).ip()), "{case}: {owned:?}");
}

/// Runs it to its end, which is near.
fn end(case: &str, command: &mut Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let ended = until("it to end", DEADLINE, || child.try_wait().unwrap());
    if ended.is_err() {
        child.kill().unwrap();
    }
    let output = child.wait_with_output().unwrap();
    assert!(ended.is_ok(), "{case}: it runs on: {}", String::from_utf8_lossy(&output.stderr));
    output
}
