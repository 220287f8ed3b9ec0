//! Keys and answers in, frames out.

use std::time::{Duration, SystemTime};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::{Terminal, backend::TestBackend, style::Color};

use super::{
    draw, fit,
    state::{Ask, Event, Mode, Panel, Reading, Top},
    theme::Theme,
};
use crate::control::{
    api::{self, Change},
    sample,
};

const THEME: Theme = Theme { colours: true, blocks: true };

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn reading(status: api::Status, reasons: api::Reasons) -> Event {
    let at: SystemTime = humantime::parse_rfc3339("2026-05-01T07:54:15Z").expect("a time");
    Event::Read(Box::new(Reading { status, reasons, at }))
}

/// The sample, with traffic that grows.
fn busy() -> Top {
    let mut top = Top::default();
    let (mut status, mut reasons) = (sample::status(), sample::reasons());
    for second in 1..=8 {
        let web_1 = &mut status.services[1].backends[0];
        web_1.new_flows_total += second;
        web_1.packets_total += 1000 * second;
        web_1.bytes_total += 100_000 * second;
        reasons.reasons.iter_mut().filter(|r| r.name == "fragment").for_each(|r| r.count += 2);
        assert_eq!(top.next(reading(status.clone(), reasons.clone()), at(second)), None);
    }
    top
}

fn press(top: &mut Top, code: KeyCode) -> Option<Ask> {
    top.next(Event::Key(KeyEvent::new(code, KeyModifiers::NONE)), top.now)
}

fn type_in(top: &mut Top, text: &str) {
    for letter in text.chars() {
        assert_eq!(press(top, KeyCode::Char(letter)), None);
    }
}

fn frame(top: &Top, theme: Theme, width: u16, height: u16) -> TestBackend {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| draw::draw(frame, top, &theme)).expect("a frame");
    terminal.backend().clone()
}

fn text(top: &Top, width: u16, height: u16) -> String {
    frame(top, THEME, width, height).to_string()
}

#[test]
fn a_small_screen_has_it_all() {
    insta::assert_snapshot!(text(&busy(), 80, 24));
}

#[test]
fn a_large_screen_has_more() {
    insta::assert_snapshot!(text(&busy(), 160, 50));
}

#[test]
fn any_size_is_drawn_on() {
    let mut top = busy();
    for panel in Panel::ALL {
        top.panel = panel;
        for mode in [Mode::Watch, Mode::Filter, Mode::Help] {
            top.mode = mode;
            for (width, height) in [(1, 1), (59, 40), (60, 12), (80, 11), (119, 39), (500, 200)] {
                let _ = text(&top, width, height);
            }
        }
    }
    assert!(text(&top, 40, 10).contains("too small"));
    let _ = text(&Top::default(), 80, 24);
}

#[test]
fn without_colours_words_and_weight_remain() {
    let top = busy();
    let has_colour = |theme: Theme| {
        let backend = frame(&top, theme, 80, 24);
        backend.buffer().content().iter().any(|cell| cell.fg != Color::Reset)
    };
    assert!(has_colour(THEME));
    let bare = Theme { colours: false, blocks: false };
    assert!(!has_colour(bare));
    let text = frame(&top, bare, 80, 24).to_string();
    assert!(text.contains("unreachable") && text.contains("[WRONG 1]"), "{text}");
    let ascii = text.lines().filter(|line| !line.is_ascii()).collect::<Vec<_>>();
    assert_eq!(ascii, Vec::<&str>::new());
}

#[test]
fn a_drain_is_asked_for_only_after_a_yes() {
    let mut top = busy();
    assert_eq!(press(&mut top, KeyCode::Char('d')), None);
    assert!(text(&top, 80, 24).contains("choose a backend: this is a service"));
    press(&mut top, KeyCode::Char('/'));
    type_in(&mut top, "web-1");
    press(&mut top, KeyCode::Enter);
    press(&mut top, KeyCode::Down);
    assert_eq!(press(&mut top, KeyCode::Char('d')), None);
    let asked = text(&top, 80, 24);
    assert!(asked.contains("web/web-1 gets no new flows from now on."), "{asked}");
    assert!(asked.contains("The 12 flows it has go on"), "{asked}");
    for no in [KeyCode::Char('n'), KeyCode::Enter, KeyCode::Esc, KeyCode::Char('d')] {
        top.mode = Mode::Watch;
        press(&mut top, KeyCode::Char('d'));
        assert_eq!(press(&mut top, no), None, "{no:?} is no yes");
        assert_eq!(top.mode, Mode::Watch);
    }
    press(&mut top, KeyCode::Char('d'));
    let Some(Ask::Change(transaction)) = press(&mut top, KeyCode::Char('y')) else {
        panic!("a yes is a yes")
    };
    let target = api::Target { service: Some("web".to_owned()), backend: "web-1".to_owned() };
    assert_eq!(transaction.changes, [Change::Drain { target, deadline_ms: None }]);
    assert!(!transaction.force, "guard rails hold");
    let refused = "it would leave 0 backends, min_available is 1";
    top.next(Event::Changed(Err(refused.to_owned())), at(9));
    assert!(text(&top, 80, 24).contains(refused));
    press(&mut top, KeyCode::Up);
    assert!(!text(&top, 80, 24).contains(refused), "it has been read");
}

#[test]
fn who_is_out_can_be_enabled() {
    let mut top = busy();
    let mut status = sample::status();
    status.services[1].backends[0].admin = api::Admin::Drained;
    top.next(reading(status, sample::reasons()), at(9));
    type_in(&mut top, "jjj");
    press(&mut top, KeyCode::Char('d'));
    assert!(text(&top, 80, 24).contains("it gets no new flows already"));
    press(&mut top, KeyCode::Char('e'));
    assert!(text(&top, 80, 24).contains("web/web-1 gets new flows again."));
    let Some(Ask::Change(transaction)) = press(&mut top, KeyCode::Char('y')) else {
        panic!("a yes is a yes")
    };
    let target = api::Target { service: Some("web".to_owned()), backend: "web-1".to_owned() };
    assert_eq!(transaction.changes, [Change::Enable { target }]);
}

#[test]
fn what_is_chosen_stays_chosen_when_the_order_changes() {
    let mut top = busy();
    type_in(&mut top, "jjjj");
    let chosen = top.chosen.clone();
    assert_eq!(chosen.as_ref().and_then(|id| id.backend.as_deref()), Some("web-2"));
    type_in(&mut top, "s");
    assert_eq!(top.chosen, chosen);
    assert_eq!(top.place(&top.rows()), 1, "by state, the worst is first");
    type_in(&mut top, "G");
    assert_eq!(top.place(&top.rows()), 4);
    press(&mut top, KeyCode::PageDown);
    assert_eq!(top.place(&top.rows()), 4);
    type_in(&mut top, "g");
    assert_eq!(top.place(&top.rows()), 0);
    press(&mut top, KeyCode::Enter);
    assert_eq!(top.rows().len(), 3, "web is closed");
}

#[test]
fn a_daemon_that_is_gone_is_told_and_waited_for() {
    let mut top = busy();
    for second in 9..20 {
        top.next(Event::Failed("no daemon answers at /run/x".to_owned()), at(second));
    }
    let gone = text(&top, 80, 24);
    assert!(gone.contains("NO DAEMON ANSWERS for 10s; last known: forwarding: yes"), "{gone}");
    assert!(gone.contains("no daemon answers at /run/x"), "{gone}");
    press(&mut top, KeyCode::End);
    press(&mut top, KeyCode::Char('d'));
    assert!(text(&top, 80, 24).contains("nothing can be changed"));
    top.next(reading(sample::status(), sample::reasons()), at(21));
    assert!(!text(&top, 80, 24).contains("NO DAEMON ANSWERS"));
}

#[test]
fn quitting_is_easy() {
    let mut top = busy();
    assert_eq!(press(&mut top, KeyCode::Char('q')), Some(Ask::Quit));
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    for mode in [Mode::Watch, Mode::Filter, Mode::Help] {
        top.mode = mode;
        assert_eq!(top.next(Event::Key(interrupt), at(9)), Some(Ask::Quit));
    }
    top.mode = Mode::Filter;
    assert_eq!(press(&mut top, KeyCode::Char('q')), None, "it is a letter there");
    assert_eq!(top.choice.filter, "q");
}

#[test]
fn a_terminal_that_can_not_be_drawn_on_is_refused_in_words() {
    assert!(fit("xterm-256color", true).is_ok());
    for (term, is_terminal) in [("dumb", true), ("", true), ("xterm", false)] {
        let error = fit(term, is_terminal).expect_err("it can't").to_string();
        assert!(error.contains("`sluice status`"), "{error}");
    }
}
