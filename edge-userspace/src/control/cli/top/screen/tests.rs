use ratatui::{Terminal, backend::TestBackend};
use serde_json::json;
use tokio::time::Instant;

use super::*;

const HOST: &str = "a-service-with-a-name-of-sixty-characters-in-all.example.com";
const CLIENT: &str = "[2001:db8:1234:5678:9abc:def0:1234:5678]:54321";

fn sample(pid: u32, seconds: u64, bytes: u64) -> Sample {
    let connection = |id: u64, client: &str, host: &str, bytes: u64| {
        serde_json::from_value(json!({
            "id": id, "client": client, "listener": "https", "host": host, "alpn": [], "route": "*",
            "backend": "[fd7a:115c:a1e0:ab12:4843:cd96:6258:2]:8443", "datapath": "splice",
            "age_seconds": 100 - id, "idle_seconds": 0.5, "bytes_up": bytes, "bytes_down": bytes * 2
        }))
        .unwrap()
    };
    Sample {
        time: Instant::now() + Duration::from_secs(seconds),
        status: serde_json::from_value(json!({
            "version": "0.1.0", "pid": pid, "started": "2023-11-14T22:13:20Z", "uptime_seconds": 60.0,
            "draining": false,
            "config": {"path": "/etc/edge/edge.toml", "loaded": "2023-11-14T22:13:20Z", "last_reload": null},
            "datapath": {"allowed": "auto", "tiers": []}, "listeners": [], "troubles": [],
            "connections": {"now": 2, "total": 10, "limit": 1000}, "bytes_up": bytes, "bytes_down": bytes * 3,
            "rejected": {}, "routes": {"file": 1, "runtime": 0}, "backends": {"up": 1, "down": 0, "drained": 0},
            "blocked_packets": 0
        }))
        .unwrap(),
        connections: vec![
            connection(1, CLIENT, HOST, 7),
            connection(2, "192.0.2.7:4711", "busy.example", bytes),
        ],
        backends: Vec::new(),
    }
}

fn screen() -> Screen {
    let output = Output { json: false, terminal: true, colours: true, width: Some(80) };
    Screen::new(output, Duration::from_secs(1))
}

fn picture(screen: &mut Screen) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    terminal.draw(|frame| screen.draw(frame)).unwrap();
    let buffer = terminal.backend().buffer().clone();
    let row = |y| (0..80).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..24).map(row).collect()
}

fn type_keys(screen: &mut Screen, keys: &str) {
    for key in keys.chars() {
        screen.press(KeyEvent::new(KeyCode::Char(key), KeyModifiers::NONE));
    }
}

#[test]
fn the_picture_is_readable_at_80_by_24() {
    let mut screen = screen();
    assert!(picture(&mut screen)[0].contains("waiting"));
    screen.take(sample(7, 0, 1_000));
    screen.take(sample(7, 1, 1_001_000));
    let lines = picture(&mut screen);
    assert!(lines[0].starts_with("edged 0.1.0 up 1m  1 route  backends 1 up, 0 down"), "{lines:#?}");
    assert_eq!(lines[1], "nothing is wrong");
    assert!(lines[2].starts_with("up       8.0 Mbit/s"), "{lines:#?}");
    assert!(lines[2].contains('\u{2588}'), "a sparkline: {lines:#?}");
    let titles: Vec<_> = lines[5].split_whitespace().collect();
    assert_eq!(titles, ["ID", "CLIENT", "HOST", "UP", "b/s*", "DOWN", "b/s*", "AGE"], "{lines:#?}");
    assert!(lines[6].contains("busy.example") && lines[6].contains("8.0 M"), "the busiest first: {lines:#?}");
    assert!(lines[7].contains("\u{2026}"), "{lines:#?}");
    type_keys(&mut screen, "j");
    let lines = picture(&mut screen);
    assert_eq!(lines[20], format!("1 {CLIENT} >"), "the chosen one is whole below");
    assert_eq!(lines[21], HOST);
    assert!(
        lines[22].starts_with("https > [fd7a:115c:a1e0:ab12:4843:cd96:6258:2]:8443 splice, idle"),
        "{lines:#?}"
    );
    assert!(lines[23].starts_with("q quit"), "{lines:#?}");
}

#[test]
fn rows_are_filtered_and_sorted_by_keys() {
    let mut screen = screen();
    screen.take(sample(7, 0, 1_000));
    let ids = |screen: &Screen| screen.rows().iter().map(|(connection, _)| connection.id).collect::<Vec<_>>();
    type_keys(&mut screen, "/sixty");
    assert_eq!(ids(&screen), [1]);
    assert_eq!(screen.press(KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE)), Wish::Draw, "a letter");
    screen.press(KeyEvent::new(KeyCode::Esc, KeyModifiers::NONE));
    assert_eq!(ids(&screen), [2, 1]);
    type_keys(&mut screen, "ss");
    assert_eq!(ids(&screen), [1, 2], "the oldest first");
    type_keys(&mut screen, "r");
    assert_eq!(ids(&screen), [2, 1]);
    assert_eq!(screen.press(KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE)), Wish::Quit);
    assert_eq!(screen.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Wish::Quit);
    type_keys(&mut screen, "G");
    picture(&mut screen);
    assert_eq!(screen.chosen, 1);
}

#[test]
fn a_daemon_that_went_away_is_said_and_the_next_one_starts_anew() {
    let mut screen = screen();
    screen.take(sample(7, 0, 1_000));
    screen.take(sample(7, 1, 2_000));
    screen.lose("edged cannot be reached".to_owned());
    assert_eq!(picture(&mut screen)[1], "edged cannot be reached");
    screen.take(sample(8, 2, 0));
    assert!(screen.before.is_none() && screen.history.len() == 1, "counters of another process");
    assert_eq!(picture(&mut screen)[1], "nothing is wrong");
}

#[test]
fn a_small_terminal_is_no_panic() {
    let mut screen = screen();
    screen.take(sample(7, 0, 1_000));
    for (width, height) in [(1, 1), (10, 3), (40, 8), (200, 60)] {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
    }
}
