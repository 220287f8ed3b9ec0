//! `examples/rolling-deploy.sh`, as an operator runs it.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    thread,
};

use sluice_tests::lab::{DEADLINE, Lab, Nginx, Plan, is_privileged, sluice_binary, until};

use crate::{
    drain::{backend, ground},
    scene::{VIP4, assert_flawless},
};

const SERVERS: [&str; 3] = ["web-1", "web-2", "web-3"];

fn deploy(lab: &Lab, arguments: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut script = Command::new(root.join("examples/rolling-deploy.sh"));
    script.args(["--instance", lab.balancer().name()]).args(arguments);
    script.env("SLUICE_BIN", sluice_binary().unwrap()).output().unwrap()
}

fn has_jq() -> bool {
    let has = Command::new("jq").arg("--version").output().is_ok();
    if !has {
        eprintln!("skipped: jq is not installed (apt-get install jq)");
    }
    has
}

#[test]
fn three_servers_are_restarted_one_by_one_and_no_request_fails() {
    if !is_privileged() || !has_jq() {
        return;
    }
    let (_servers, mut scene, sluice) = ground(Plan::default());
    let load = scene.load(VIP4);
    load.run_for_requests(100, DEADLINE).unwrap();
    let directory = scene.lab.directory();
    let at = directory.display();
    // The deploy asks this test to restart the server, for its processes are the test's.
    let command = format!("touch {at}/$0.asked; until [ -e {at}/$0.done ]; do sleep 0.1; done");
    let arguments = [&SERVERS[..], &["--", "sh", "-c", &command, "{}"]].concat();
    thread::scope(|scope| {
        let (nginx, lab) = (&mut scene.nginx, &scene.lab);
        let restarts = scope.spawn(move || {
            for (index, host) in lab.backends().iter().enumerate() {
                let asked = lab.directory().join(format!("{}.asked", host.role()));
                until("the deploy", 6 * DEADLINE, || asked.exists().then_some(())).unwrap();
                nginx[index].process.kill9().unwrap();
                nginx[index] = Nginx::start(host, &[80]).unwrap();
                fs::write(asked.with_extension("done"), "").unwrap();
            }
        });
        let output = deploy(lab, &arguments);
        let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(output.status.code(), Some(0), "{told}");
        restarts.join().unwrap();
        for server in SERVERS {
            assert!(told.contains(&format!("{server}: done")), "{told}");
        }
    });
    load.run_for_requests(100, DEADLINE).unwrap();
    let tally = load.stop();
    assert_flawless(&scene, &tally);
    for (server, nginx) in SERVERS.iter().zip(&scene.nginx) {
        let admin = backend(&sluice, "web", server);
        assert_eq!((&admin["admin"], &admin["takes_new_flows"]), (&"enabled".into(), &true.into()));
        assert!(!nginx.access_log().is_empty(), "{server} has served since its restart");
    }
}

#[test]
fn a_deploy_that_fails_leaves_the_server_drained_and_says_what_is_left() {
    if !is_privileged() || !has_jq() {
        return;
    }
    let (_servers, scene, sluice) = ground(Plan::default());
    let output = deploy(&scene.lab, &["web-1", "web-2", "web-3", "--", "test", "{}", "=", "web-1"]);
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains("still to do: web-2 web-3\n"), "{complaint}");
    let admin = SERVERS.map(|server| backend(&sluice, "web", server)["admin"].clone());
    assert_eq!(admin, ["enabled", "drained", "enabled"]);
}

#[test]
fn wrong_usage_of_the_script_is_told() {
    if !is_privileged() || !has_jq() {
        return;
    }
    let (_servers, scene, _sluice) = ground(Plan { backends: 1, ..Plan::default() });
    let help = deploy(&scene.lab, &["--help"]);
    assert!(help.status.success() && help.stdout.starts_with(b"usage: "));
    for arguments in [&["web-1"][..], &["--", "true"], &["--what", "web-1", "--", "true"]] {
        assert_eq!(deploy(&scene.lab, arguments).status.code(), Some(2), "{arguments:?}");
    }
    let unknown = deploy(&scene.lab, &["web-9", "--", "true"]);
    let complaint = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert_eq!(unknown.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains("web-9"), "{complaint}");
}
