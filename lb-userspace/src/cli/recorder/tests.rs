use std::{io::Cursor, ops::Range};

use lb_common::reason::Reason;

use super::*;
use crate::{
    control::{
        api::{Admin, Health},
        sample,
    },
    recorder::{Condition, Figures, Line, Party, Recording, Returned, Second},
};

/// 2026-05-01T07:30:00Z, at which the sample's first event happened.
const START: u64 = 1_777_620_600;

fn line(backend: &str, counts: &[(Count, u64)]) -> Line {
    let mut figures = Figures { packets: 400, bytes: 52_000, active: 30, ..Figures::default() };
    for (event, count) in counts {
        figures.events[*event as usize] = *count;
    }
    Line {
        party: Party::Backend { service: "web".to_owned(), backend: backend.to_owned() },
        figures,
        condition: Some(Condition { admin: Admin::Enabled, health: Health::Healthy }),
        before: None,
    }
}

/// A backend dies; the daemon does, too, and comes back.
fn story() -> (Story, Wanted) {
    let well = |backend| line(backend, &[(Count::NewFlow, 10), (Count::Handshake, 10)]);
    let ill = line("web-2", &[(Count::NewFlow, 10), (Count::SynRetransmission, 7)]);
    let second = |at, lines| Second { at: START + at, span_ms: 1000, reasons: vec![], lines };
    let fallen = Line {
        condition: Some(Condition { admin: Admin::Enabled, health: Health::Unreachable }),
        before: ill.condition,
        figures: Figures::default(),
        ..ill.clone()
    };
    let mut seconds = vec![
        second(0, vec![well("web-1"), well("web-2")]),
        second(1, vec![well("web-1"), ill]),
        second(2, vec![well("web-1"), fallen]),
    ];
    seconds.extend((3..6).map(|at| second(at, vec![])));
    seconds.push(Second { span_ms: 3100, ..second(14, vec![well("web-1")]) });
    seconds[2].reasons = vec![(Reason::NotIp as u16, 2), (Reason::NoBackend as u16, 1234)];
    let (oldest, newest) = (Some(START), Some(START + 14));
    let recording = Recording { seconds, oldest, newest, damaged: 0 };
    let wanted = Wanted { from: START, until: START + 15, service: None, backend: None };
    let mut events = sample::events().events;
    events[0].id = START * 1_000_000;
    events[1].id = (START + 9) * 1_000_000;
    (Story::new(&recording, events, &wanted), wanted)
}

#[test]
fn a_minute_is_told_second_by_second() {
    let (story, _) = story();
    let zone = TimeZone::fixed(jiff::tz::offset(2));
    insta::assert_snapshot!(render(&story, &zone, Palette { colours: false }), @"
    2026-05-01 09:30:00 to 09:30:15 +02:00

    TIME      NEW FLOWS  HANDSHAKES  SYN AGAIN  RESETS  ACTIVE  PACKETS    BYTES
    09:30:00         20          20          0       0      60      800   104 kB
              change web/web-1: enabled -> draining (uid 0)
    09:30:01         20          10          7       0      60      800   104 kB
              web/web-2: 10 new flows, 0 handshakes, 7 SYNs sent again
    09:30:02         10          10          0       0      30      400  52.0 kB
              web/web-2: healthy -> unreachable
              not forwarded: no_backend 1,234
    09:30:03  quiet until 09:30:05
    09:30:06  nothing is recorded for 6s
              drift: VIPS 203.0.113.10
    09:30:14         10          10          0       0      30      400  52.0 kB  3.1 s together

    BACKEND    NEW FLOWS  HANDSHAKES  SYN AGAIN  RESETS  ACTIVE  PACKETS   BYTES
    web/web-1         40          40          0       0      30    1,600  208 kB
    web/web-2         20          10          7       0       0      800  104 kB

    not forwarded, by reason: no_backend 1,234, not_ip 2
    ");
}

#[test]
fn of_services_that_translate_the_answers_are_told_too() {
    let answered = |backend, packets, counts: &[(Count, u64)]| {
        let mut line = line(backend, counts);
        line.figures.returned = Some(Returned { packets, bytes: 1400 * packets });
        line
    };
    let new = [(Count::NewFlow, 10), (Count::Handshake, 9)];
    let refused = [(Count::NewFlow, 10), (Count::Refusal, 8), (Count::BackendReset, 2)];
    let direct = Line {
        party: Party::Backend { service: "dsr".to_owned(), backend: "a".to_owned() },
        ..line("", &new)
    };
    let lines = vec![answered("web-1", 210, &new), answered("web-2", 0, &refused), direct];
    let seconds = vec![Second { at: START, span_ms: 1000, reasons: vec![], lines }];
    let recording = Recording { seconds, ..Recording::default() };
    let wanted = Wanted { from: START, until: START + 1, service: None, backend: None };
    let story = Story::new(&recording, vec![], &wanted);
    insta::assert_snapshot!(render(&story, &TimeZone::UTC, Palette { colours: false }), @"
    2026-05-01 07:30:00 to 07:30:01 +00:00

    TIME      NEW FLOWS  HANDSHAKES  SYN AGAIN  RESETS  ACTIVE  PACKETS   BYTES  RETURNED  RETURN BYTES  REFUSED  BACKEND RESETS
    07:30:00         30          18          0      10      90    1,200  156 kB       210        294 kB        8               2
              web/web-2: 10 new flows, 0 handshakes, 8 refused, 2 reset by the backend

    BACKEND    NEW FLOWS  HANDSHAKES  SYN AGAIN  RESETS  ACTIVE  PACKETS    BYTES  RETURNED  RETURN BYTES  REFUSED  BACKEND RESETS
    dsr/a             10           9          0       0      30      400  52.0 kB         -             -        -               -
    web/web-1         10           9          0       0      30      400  52.0 kB       210        294 kB        0               0
    web/web-2         10           0          0      10      30      400  52.0 kB         0           0 B        8               2
    ");
    let json = serde_json::to_value(&story).expect("JSON");
    let returned: Vec<_> =
        json["backends"].as_array().expect("a list").iter().map(|b| &b["return_packets"]).collect();
    assert_eq!(returned, [&serde_json::Value::Null, &210.into(), &0.into()]);
}

#[test]
fn a_time_of_which_nothing_is_known_says_what_is() {
    let (mut story, _) = story();
    story.seconds.clear();
    let text = render(&story, &TimeZone::UTC, Palette { colours: false });
    assert!(
        text.contains(
            "nothing was recorded then; there is a recording from 2026-05-01T07:30:00Z to"
        ),
        "{text}"
    );
}

#[test]
fn a_name_that_had_nothing_is_told_with_those_that_had() {
    let (mut story, _) = story();
    story.service = Some("wbe".to_owned());
    story.backends.clear();
    let text = render(&story, &TimeZone::UTC, Palette { colours: false });
    assert!(
        text.contains("nobody of that name had packets or flows; services that had: web"),
        "{text}"
    );
}

/// Draws the story into a file of that extension; its bytes.
fn drawn(extension: &str) -> Vec<u8> {
    let (story, wanted) = story();
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("plot").with_extension(extension);
    let file = path.display().to_string().parse().expect("a picture's name");
    plot::draw(&file, &story, &wanted, &TimeZone::UTC).expect("drawn");
    std::fs::read(&path).expect("a file")
}

#[test]
fn a_picture_has_a_line_for_each_thing_and_grey_where_nothing_is_known() {
    let picture = String::from_utf8(drawn("svg")).expect("a text");
    assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
    for text in ["new flows", "active flows", "web", "no_backend", "07:30:0"] {
        assert!(picture.contains(text), "no {text:?} in {picture}");
    }
    assert!(picture.contains("<circle"), "the second behind the gap, alone");
    assert!(!picture.contains("not_ip"), "what is passed is no loss");
}

#[test]
fn a_picture_in_pixels_has_the_same_lines_and_letters_without_any_font_here() {
    let bytes = drawn("PNG");
    let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info().expect("a PNG");
    let mut pixels = vec![0; reader.output_buffer_size().expect("of a size")];
    let info = reader.next_frame(&mut pixels).expect("whole");
    assert_eq!((info.width, info.height), (2400, 2000));
    let count = |colour: [u8; 3]| pixels.chunks(3).filter(|pixel| *pixel == colour).count();
    let rows = |colour: [u8; 3], rows: Range<usize>| {
        let row = info.width as usize * 3;
        let part = &pixels[rows.start * row..rows.end * row];
        part.chunks(3).filter(|pixel| *pixel == colour).count()
    };
    assert!(count([255; 3]) > 2_000_000, "mostly white");
    assert!(count([0, 114, 178]) > 1000, "the first line of each plot");
    // Nothing but the title is up there.
    assert!(rows([0; 3], 0..48) > 300, "no title");
}

#[test]
fn a_file_that_is_no_picture_is_refused_by_its_name() {
    for name in ["minute.gif", "minute", "minute.svg.bak", ".png"] {
        let error = name.parse::<plot::File>().expect_err(name);
        assert_eq!(error, "pictures are SVG or PNG: name the file *.svg or *.png");
    }
}

#[test]
fn the_window_is_of_the_past_and_of_whole_seconds() {
    let now: Zoned = "2026-11-21T14:10:00+01:00[Europe/Berlin]".parse().expect("a moment");
    let present = u64::try_from(now.timestamp().as_second()).expect("after 1970");
    let arguments = |at: Option<&str>, window| Arguments {
        at: at.map(|at| at.parse().expect("a moment")),
        window: Duration::from_secs(window),
        service: None,
        backend: None,
        plot: None,
        output: Output { json: false },
    };
    let window = |at, length| {
        let wanted = wanted(&arguments(at, length), &now).expect("a window");
        (present - wanted.from, present - wanted.until)
    };
    assert_eq!(window(None, 60), (61, 1));
    assert_eq!(window(Some("14:03"), 120), (420, 300));
    assert_eq!(window(Some("30s ago"), 120), (30, 1));
    assert!(wanted(&arguments(Some("now"), 60), &now).is_err());
    assert!(wanted(&arguments(None, 0), &now).is_err());
}
