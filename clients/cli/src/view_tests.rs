//! What the screen shows, character by character.

use super::*;
use crate::{
    body::Body,
    input::Edit,
    model::{Happening, Key},
};
use natter_sdk::Alias;
use ratatui::{Terminal, backend::TestBackend};

const NOON_MS: u64 = 1_800_014_400_000; // 2027-01-15 12:00 UTC

fn screen(model: &Model, columns: u16, rows: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
    let zone = TimeZone::UTC;
    let show = |frame: &mut Frame<'_>| {
        draw(frame, model, NOON_MS, &zone);
    };
    terminal.draw(show).unwrap();
    let buffer = terminal.backend().buffer().clone();
    let row = |y| (0..columns).map(|x| buffer[(x, y)].symbol().to_owned()).collect::<String>();
    (0..rows).map(|y| row(y).trim_end().to_owned()).collect()
}

fn alias(name: &str) -> Alias {
    Alias::parse(name).unwrap()
}

fn talk() -> Model {
    let mut model = Model::new(alias("ada"), 1, 1);
    model.happened(Happening::Connected, NOON_MS);
    model.happened(Happening::Found { alias: alias("bob"), user: 5, open: true }, NOON_MS);
    let body = Body { claims: None, text: "shall we meet?\nat nine".into() };
    let at_ms = NOON_MS - 60_000;
    model.happened(Happening::Message { from: 5, device: 1, send_id: 1, at_ms, body }, NOON_MS);
    for (send_id, text) in (1..).zip(["yes", "no", "yes", "maybe"]) {
        let (to, text) = (5, text.to_owned());
        model.happened(Happening::Sent { to, device: 1, send_id, at_ms: NOON_MS, text }, NOON_MS);
    }
    for (send_id, tick) in
        [(1, Tick::Read), (2, Tick::Accepted), (4, Tick::Failed("no such person".into()))]
    {
        let ticked = Happening::Ticked { to: 5, device: 1, send_ids: vec![send_id], tick };
        model.happened(ticked, NOON_MS);
    }
    model
}

#[test]
fn a_conversation_is_shown_with_its_ticks() {
    let mut model = talk();
    model.happened(Happening::Presence { user: 5, online: true, last_seen_ms: 0 }, NOON_MS);
    model.key(Key::Edit(Edit::Insert('h')), NOON_MS);
    let rows = screen(&model, 70, 12);
    let expected = [
        "● bob                  │ bob  online",
        "                       │",
        "                       │",
        "                       │",
        "                       │ 11:59 bob shall we meet?",
        "                       │           at nine",
        "                       │ 12:00 you yes ✓✓",
        "                       │ 12:00 you no ✓",
        "                       │ 12:00 you yes ◷",
        "                       │ 12:00 you maybe ✗ no such person",
        "                       │> h",
        " ada ● connected  ◷ 1 unsent",
    ];
    assert_eq!(rows, expected);
}

#[test]
fn typing_and_last_seen_stand_beside_the_name_and_old_messages_have_a_date() {
    let mut model = talk();
    let day = 24 * 3_600_000;
    let seen = Happening::Presence { user: 5, online: false, last_seen_ms: NOON_MS - day };
    model.happened(seen, NOON_MS);
    assert_eq!(screen(&model, 50, 4)[0], " bob  last seen 01-14 12:00");
    model.happened(Happening::Typing { from: 5, typing: true }, NOON_MS);
    assert_eq!(screen(&model, 50, 4)[0], " bob  is typing …");
}

#[test]
fn every_size_of_screen_is_drawn_and_scrolling_stops_at_the_first_message() {
    let mut model = talk();
    model.scroll = 1_000;
    for columns in [1, 2, 10, 59, 60, 200] {
        for rows in [1, 2, 3, 5, 50] {
            screen(&model, columns, rows);
        }
    }
    assert_eq!(screen(&model, 50, 5)[1], " 11:59 bob shall we meet?");
    let mut terminal = Terminal::new(TestBackend::new(50, 5)).unwrap();
    let mut scrolled = 0;
    terminal.draw(|f| scrolled = draw(f, &model, NOON_MS, &TimeZone::UTC)).unwrap();
    assert_eq!(scrolled, 4, "six rows, of which two are seen");
}

#[test]
fn text_is_broken_between_words_and_long_words_anywhere() {
    assert_eq!(wrap("one two three", 8), ["one two", "three"]);
    assert_eq!(wrap("abcdefghij", 4), ["abcd", "efgh", "ij"]);
    assert_eq!(wrap("", 4), [""]);
    assert_eq!(wrap("日本語", 4), ["日本", "語"]);
    assert_eq!(cut("grandmother", 6), "grand…");
}

#[test]
fn the_end_of_a_long_line_is_seen_while_it_is_typed() {
    let mut model = talk();
    "0123456789".repeat(10).chars().for_each(|c| {
        model.key(Key::Edit(Edit::Insert(c)), NOON_MS);
    });
    let rows = screen(&model, 30, 5);
    assert!(rows[3].ends_with("789"), "{rows:?}");
}

#[test]
fn words_for_the_person_are_broken_instead_of_cut() {
    let mut model = talk();
    model.happened(Happening::Notice(vec!["one two three four five six".into()]), NOON_MS);
    let rows = screen(&model, 16, 10);
    assert_eq!(rows[6..8], ["one two three", "four five six"]);
}
