//! The laboratory by itself, without `sluice`: what the other tests take for granted.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    path::Path,
    process::Command,
    time::Duration,
};

use sluice_tests::lab::{
    Conversations, DEADLINE, EchoServer, Family, Lab, Load, LoadPlan, Nginx, Plan, Program,
    REFLECT_UDP, Target, fetch, is_privileged, until,
};

#[test]
fn clients_reach_every_nginx_over_ipv4_and_ipv6() {
    if !is_privileged() {
        return;
    }
    let lab = Lab::start(Plan::default()).unwrap();
    let nginx = lab
        .backends()
        .iter()
        .map(|host| Nginx::start(host, &[80, 8080]).unwrap())
        .collect::<Vec<_>>();
    for host in lab.backends() {
        for family in [Family::V4, Family::V6] {
            for port in [80, 8080] {
                let address = SocketAddr::new(host.address(family), port);
                let url = format!("http://{address}/");
                let body = lab.client().run("curl", &["-sS", "--max-time", "5", &url]).unwrap();
                assert_eq!(body, format!("{}\n", host.role()));
            }
        }
        let file = SocketAddr::new(host.address(Family::V6), 80);
        let answer = lab.client().enter(|| fetch(file, "/file", Duration::from_secs(5))).unwrap();
        assert!(answer.body == Nginx::file(), "the file came changed");
    }
    assert_eq!(nginx[0].access_log().lines().filter(|line| line.contains("curl")).count(), 4);
}

#[test]
fn frames_sent_back_by_xdp_cross_the_bridge_not_only_the_first() {
    if !is_privileged() {
        return;
    }
    let lab = Lab::start(Plan { backends: 0, ..Plan::default() }).unwrap();
    let program = Program::load(REFLECT_UDP).unwrap();
    let _attached = program.attach(lab.balancer().namespace(), "eth0").unwrap();
    assert!(lab.balancer().xdp("eth0").unwrap().is_some());

    let reflector = SocketAddr::new(lab.balancer().address(Family::V4), 7777);
    lab.client().enter(|| {
        let socket = UdpSocket::bind(("0.0.0.0", 7777)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        for number in 0..100_u32 {
            socket.send_to(&number.to_be_bytes(), reflector).unwrap();
            let mut back = [0; 4];
            let (length, from) = socket.recv_from(&mut back).expect("a frame sent back by XDP_TX");
            assert_eq!((length, from, u32::from_be_bytes(back)), (4, reflector, number));
        }
    });
}

#[test]
fn load_is_counted_by_backend_and_failures_keep_their_cause() {
    if !is_privileged() {
        return;
    }
    let lab = Lab::start(Plan { backends: 2, ..Plan::default() }).unwrap();
    let _nginx = Nginx::start(&lab.backends()[0], &[80]).unwrap();
    let targets = lab.backends().iter().map(|host| Target {
        name: host.role().into(),
        address: SocketAddr::new(host.address(Family::V4), 80),
    });
    let plan = LoadPlan { requests: Some(200), ..LoadPlan::on(targets) };
    let tally = Load::start(lab.client(), plan).unwrap().finish();
    assert_eq!(tally.requests, 200);
    assert_eq!(tally.per_backend().into_iter().collect::<Vec<_>>(), [("web-1".into(), 100)]);
    assert_eq!(tally.causes(), "100 × web-2: connection refused\n");
}

#[test]
fn conversations_are_counted_and_a_broken_one_is_told() {
    if !is_privileged() {
        return;
    }
    let lab = Lab::start(Plan { backends: 1, ..Plan::default() }).unwrap();
    let host = &lab.backends()[0];
    let server = EchoServer::start(host, 7).unwrap();
    let address = SocketAddr::new(host.address(Family::V4), 7);
    let conversations = Conversations::start(lab.client(), address, 20).unwrap();
    conversations.run_for_messages(100).unwrap();
    // The server goes while they are speaking.
    drop(server);
    until("all to break", DEADLINE, || (conversations.broken() == 20).then_some(())).unwrap();
    let report = conversations.stop();
    assert_eq!(report.per_backend.into_iter().collect::<Vec<_>>(), [("web-1".into(), 20)]);
    assert!(report.messages >= 100);
}

#[test]
fn the_second_network_is_reached_through_the_router() {
    if !is_privileged() {
        return;
    }
    let lab = Lab::start(Plan { backends: 1, second_network: true, ..Plan::default() }).unwrap();
    for family in [Family::V4, Family::V6] {
        let client = lab.client().address(family).to_string();
        lab.backends()[0].run("ping", &["-c1", "-W5", &client]).unwrap();
        let backend = lab.backends()[0].address(family).to_string();
        lab.balancer().run("ping", &["-c1", "-W5", &backend]).unwrap();
    }
}

#[test]
fn a_trunk_carries_what_is_not_for_a_vip_untagged() {
    if !is_privileged() {
        return;
    }
    let lab = Lab::start(Plan { backends: 0, vlan: Some(100), ..Plan::default() }).unwrap();
    for family in [Family::V4, Family::V6] {
        let balancer = lab.balancer().address(family).to_string();
        lab.client().run("ping", &["-c1", "-W5", &balancer]).unwrap();
    }
    assert_eq!(lab.tagged_frames(), (0, 0));
}

#[test]
fn a_laboratory_leaves_nothing_behind_even_on_a_panic() {
    if !is_privileged() {
        return;
    }
    let (name, id, directory) = std::thread::spawn(|| {
        let lab = Lab::start(Plan { backends: 1, ..Plan::default() }).unwrap();
        let nginx = Nginx::start(&lab.backends()[0], &[80]).unwrap();
        let seen = (lab.name().to_owned(), nginx.process.id(), lab.directory());
        std::panic::resume_unwind(Box::new(seen));
    })
    .join()
    .map_err(|panic| *panic.downcast::<(String, u32, std::path::PathBuf)>().unwrap())
    .unwrap_err();

    assert!(!Path::new("/proc").join(id.to_string()).exists(), "nginx still runs");
    assert!(!directory.exists());
    assert_eq!(namespaces(&name), [""; 0]);
}

#[test]
fn what_a_killed_run_left_is_removed_by_the_next() {
    if !is_privileged() {
        return;
    }
    // A child of this test's own program, made to build a laboratory and hang.
    if std::env::var_os("SLUICE_TEST_HANG").is_some() {
        let lab = Lab::start(Plan { backends: 1, ..Plan::default() }).unwrap();
        let _nginx = Nginx::start(&lab.backends()[0], &[80]).unwrap();
        println!("built");
        loop {
            std::thread::park();
        }
    }
    // The janitor works once a process, so a second child does the cleaning.
    let child = |hang: bool, test: &str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture"]).stdout(std::process::Stdio::piped());
        if hang {
            command.env("SLUICE_TEST_HANG", "1");
        }
        command.spawn().unwrap()
    };
    let mut hung = child(true, "laboratory::what_a_killed_run_left_is_removed_by_the_next");
    let prefix = format!("sl-{}-", hung.id());
    let mut output = std::io::BufReader::new(hung.stdout.take().unwrap());
    let built = std::io::BufRead::lines(&mut output).any(|line| line.unwrap().ends_with("built"));
    assert!(built, "the child has built no laboratory");
    assert!(!namespaces(&prefix).is_empty());
    hung.kill().unwrap();
    hung.wait().unwrap();

    let mut next = child(false, "laboratory::a_trunk_carries_what_is_not_for_a_vip_untagged");
    assert!(next.wait().unwrap().success());
    assert_eq!(namespaces(&prefix), [""; 0]);
    let temporary = fs::read_dir(std::env::temp_dir()).unwrap().flatten();
    let left = temporary.filter(|e| e.file_name().to_string_lossy().starts_with(&prefix)).count();
    assert_eq!(left, 0, "directories of the killed run");
}

fn namespaces(prefix: &str) -> Vec<String> {
    let entries = fs::read_dir("/run/netns").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}
