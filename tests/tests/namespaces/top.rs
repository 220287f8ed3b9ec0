//! `sluice top` in terminals of two sizes, with a real daemon: watched, used, left.

use nix::sys::signal::{Signal, kill};
use sluice_tests::lab::{DEADLINE, Family, Plan, Sluice, Terminal, is_privileged};

use crate::{
    health::{backend, until_backend},
    scene::{Scene, VIP4},
};

const SMALL: (u16, u16) = (80, 24);
const LARGE: (u16, u16) = (160, 50);

fn admin(sluice: &Sluice, name: &str) -> String {
    backend(sluice, "web", name)["admin"].as_str().unwrap().to_owned()
}

fn top(scene: &Scene, size: (u16, u16)) -> Terminal {
    scene.lab.balancer().terminal(size, "echo before; $SLUICE top; echo after $?").unwrap()
}

/// Whether something is green: by number 2 of the eight colours, or of the 256.
fn is_coloured(terminal: &Terminal) -> bool {
    let screen = terminal.coloured_screen().unwrap();
    screen.contains("\x1b[32m") || screen.contains("38;5;2m")
}

/// The line of this backend.
fn line<'s>(screen: &'s str, name: &str) -> &'s str {
    screen.lines().find(|line| line.trim_start().starts_with(name)).unwrap_or_default()
}

/// Whether its new flows have a rate, and one that is more than nothing.
fn is_busy(screen: &str, name: &str) -> bool {
    let mut words = line(screen, name).split_whitespace();
    let is_rate = |word: &str| word.parse::<f64>().is_ok_and(|rate| rate > 0.0);
    words.any(|word| word == "healthy") && words.nth(1).is_some_and(is_rate)
}

#[test]
fn top_shows_rates_and_drains_from_the_keyboard_at_two_sizes() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = Scene::forwarding(Plan::default(), VIP4, "l2", Family::V4);
    let load = scene.load(VIP4);
    load.run_for_requests(100, DEADLINE).unwrap();
    for size in [SMALL, LARGE] {
        let terminal = top(&scene, size);
        let screen = terminal.until("rates", |screen| is_busy(screen, "web-1")).unwrap();
        assert!(screen.contains("forwarding: yes"), "{screen}");
        assert!(screen.contains("nothing is wrong"), "{screen}");
        assert_eq!(screen.contains("SYN AGAIN/s"), size == LARGE, "{screen}");
        let widest = screen.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= usize::from(size.0), "{screen}");
        assert!(is_coloured(&terminal), "green");

        terminal.press(&["/", "web-2", "Enter", "Down", "d"]).unwrap();
        terminal.until("the question", |screen| screen.contains("web/web-2 gets no new")).unwrap();
        assert_eq!(admin(&sluice, "web-2"), "enabled", "nobody has said yes");
        terminal.press(&["y"]).unwrap();
        until_backend(&sluice, ("web", "web-2"), "out", |it| it["takes_new_flows"] == false);
        let is_out = |screen: &str| line(screen, "web-2").contains("drain");
        let screen = terminal.until("that it drains", is_out).unwrap();
        assert!(!screen.contains("web-1"), "the filter holds: {screen}");
        terminal.press(&["e"]).unwrap();
        terminal.until("the question", |screen| screen.contains("gets new flows again")).unwrap();
        terminal.press(&["y"]).unwrap();
        until_backend(&sluice, ("web", "web-2"), "in", |it| it["takes_new_flows"] == true);

        terminal.press(&["q"]).unwrap();
        let screen = terminal.until("the shell", |screen| screen.contains("after 0")).unwrap();
        assert!(screen.starts_with("before\n"), "the screen is given back: {screen}");
        assert!(!screen.contains("web-2"), "{screen}");
    }
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "of {}:\n{}", tally.requests, tally.causes());
}

#[test]
fn top_waits_for_a_daemon_that_is_gone_and_heeds_signals() {
    if !is_privileged() {
        return;
    }
    let (scene, mut sluice) = Scene::forwarding(Plan::default(), VIP4, "l2", Family::V4);
    let balancer = scene.lab.balancer();
    let line = "echo before; NO_COLOR=1 $SLUICE top --interval 200ms; echo after $?";
    let terminal = balancer.terminal(SMALL, line).unwrap();
    terminal.until("the list", |screen| screen.contains("web-3")).unwrap();
    assert!(!is_coloured(&terminal), "no colours were wanted");
    sluice.kill9().unwrap();
    let gone = |screen: &str| screen.contains("NO DAEMON ANSWERS");
    let screen = terminal.until("that it is gone", gone).unwrap();
    assert!(screen.contains("web-3"), "what was last known stays: {screen}");
    sluice.start().unwrap();
    terminal.until("that it is back", |screen| !gone(screen) && screen.contains("web-3")).unwrap();
    terminal.press(&["C-c"]).unwrap();
    let screen = terminal.until("the shell", |screen| screen.contains("after 0")).unwrap();
    assert!(screen.starts_with("before\n"), "the screen is given back: {screen}");

    // A signal, as a closing session sends it.
    drop(terminal);
    let terminal = top(&scene, SMALL);
    terminal.until("the list", |screen| screen.contains("web-3")).unwrap();
    kill(terminal.program().unwrap(), Signal::SIGTERM).unwrap();
    let screen = terminal.until("the shell", |screen| screen.contains("after 0")).unwrap();
    assert!(screen.starts_with("before\n"), "the screen is given back: {screen}");

    sluice.stop().unwrap();
    let mut command = balancer.sluice().unwrap();
    let output = command.arg("top").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let says = String::from_utf8_lossy(&output.stderr);
    assert!(says.contains("must be a terminal") && says.contains("sluice status"), "{says}");
}
