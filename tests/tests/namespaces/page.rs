//! The status page, in a browser: what it shows is what is, by its own script and nothing else.

use std::{fs, path::PathBuf};

use sluice_tests::lab::{DEADLINE, Family, View, is_privileged, until};

use crate::{
    health::{until_health, web_on_three},
    scene::{VIP4, address},
};

const URL: &str = "http://127.0.0.1:9180/";

/// On a desk.
const DESK: View<'_> = View { size: (960, 900), dark: false, milliseconds: 90_000, picture: None };

#[test]
fn the_page_shows_what_is_wrong_and_what_happens() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = web_on_three();
    let balancer = scene.lab.balancer();
    let load = scene.load(VIP4);
    scene.lab.backends()[1].disown_vip(address(VIP4).ip()).unwrap();
    until_health(&sluice, ("web", "web-2"), "unreachable");
    sluice.cli_ok(&["backend", "drain", "web", "web-3"]).unwrap();
    load.run_for_requests(100, DEADLINE).unwrap();

    // To be looked at by a person, and for `docs/`: into the directory of this name.
    let kept = std::env::var_os("SLUICE_PICTURES").map(PathBuf::from);
    let pictures = kept.unwrap_or_else(|| scene.lab.directory());
    let picture = pictures.join("status-page.png");
    let seen = balancer.browse(URL, View { picture: Some(&picture), ..DESK }).unwrap();
    let phone = pictures.join("status-page-phone.png");
    let view = View { size: (400, 1300), dark: true, picture: Some(&phone), ..DESK };
    balancer.browse(URL, view).unwrap();
    drop(load);
    assert_eq!(seen.console, Vec::<String>::new(), "errors, or what the policy refused");
    let page = &seen.document;
    for text in [
        "Forwarding<small>",
        "1 thing is wrong",
        "backend web/web-2 is unreachable: ",
        "backend web/web-3 is drain",
        "<code>sluice backend enable web web-3</code>",
        "203.0.113.10:80 l2",
        "1 of 3 take new connections",
        "enabled -&gt; draining",
    ] {
        assert!(page.contains(text), "{text:?} is not in {page}");
    }
    // Rates came from two readings at least, and were drawn.
    assert!(page.contains("<polyline points=\""), "{page}");
    let client = scene.lab.client().address(Family::V4).to_string();
    assert!(!page.contains(&client), "a client's address is nobody's business");
    for picture in [picture, phone] {
        assert!(fs::read(&picture).unwrap().starts_with(b"\x89PNG"), "{}", picture.display());
    }
}

#[test]
fn the_page_says_that_clients_are_turned_away_and_only_reads() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = web_on_three();
    let balancer = scene.lab.balancer();
    for backend in scene.backends() {
        sluice.cli_ok(&["backend", "disable", "web", backend, "--force"]).unwrap();
    }
    let json = || {
        let url = format!("{URL}status.json");
        balancer.run("curl", &["-sS", "--fail", "--max-time", "5", &url]).unwrap()
    };
    until("the outage to be told", DEADLINE, || {
        json().contains(r#""forwarding":"no""#).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error:#}: {}", json()));
    let page = balancer.browse(URL, DESK).unwrap().document;
    for text in ["Not forwarding<small>", "refuses new connections", "sluice backend enable web"] {
        assert!(page.contains(text), "{text:?} is not in {page}");
    }
    // Only what reads is there.
    for path in ["", "status.json"] {
        let url = format!("{URL}{path}");
        let post = ["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", &url];
        assert_eq!(balancer.run("curl", &post).unwrap(), "405");
    }
    let head = balancer.run("curl", &["-sS", "-D", "-", "-o", "/dev/null", URL]).unwrap();
    assert!(head.contains("content-security-policy: default-src 'none';"), "{head}");
}
