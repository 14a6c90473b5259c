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
fn a_long_text_wraps_and_its_box_grows_to_half_of_the_screen() {
    let mut model = talk();
    model.pasted(&"0123456789".repeat(5), NOON_MS);
    let rows = screen(&model, 30, 9);
    assert_eq!(
        rows[6..8],
        ["> 012345678901234567890123456", "  78901234567890123456789"],
        "{rows:?}"
    );
    model.pasted(&"\nx".repeat(70), NOON_MS);
    let rows = screen(&model, 30, 9);
    assert_eq!(rows[4..8], ["  x", "  x", "  x", "  x"], "the end is seen: {rows:?}");
    (0..70).for_each(|_| drop(model.key(Key::Up, NOON_MS)));
    let rows = screen(&model, 30, 9);
    assert!(rows[4].starts_with("> 0123"), "the cursor is seen: {rows:?}");
}

#[test]
fn the_cursor_stands_where_the_next_letter_goes() {
    let mut model = talk();
    let at = |model: &Model| Typed::of(&model.input, 13).cursor;
    model.pasted("0123456789", NOON_MS);
    assert_eq!(at(&model), (0, 10));
    model.key(Key::Edit(Edit::Insert('a')), NOON_MS);
    assert_eq!(at(&model), (1, 1));
    model.key(Key::Edit(Edit::Left), NOON_MS);
    assert_eq!(at(&model), (1, 0));
    model.key(Key::NewLine, NOON_MS);
    assert_eq!(at(&model), (1, 0), "a line feed at the end of a row makes no row of its own");
}

#[test]
fn help_is_whole_on_80_and_on_40_columns() {
    let mut model = talk();
    model.pasted("/help", NOON_MS);
    model.key(Key::Enter, NOON_MS);
    for columns in [40, 80] {
        let shown = screen(&model, columns, 24).join("\n");
        for line in crate::command::HELP {
            assert!(shown.contains(line), "{line:?} is broken or missing:\n{shown}");
        }
    }
}

#[test]
fn why_a_message_was_refused_is_broken_instead_of_cut() {
    let mut model = talk();
    let why = "too many messages wait for them; try again later".to_owned();
    let (to, device, send_ids) = (5, 1, vec![2]);
    model.happened(Happening::Sent { to, device, send_id: 9, at_ms: NOON_MS, text: "z".into() }, 0);
    let failed = Happening::Ticked { to, device, send_ids, tick: Tick::Failed(why) };
    model.happened(failed, NOON_MS);
    let rows = screen(&model, 40, 12);
    let at =
        rows.iter().position(|row| row.ends_with("you no ✗")).unwrap_or_else(|| panic!("{rows:?}"));
    assert_eq!(
        rows[at + 1..at + 3],
        ["           too many messages wait for", "           them; try again later"],
    );
    assert!(rows.iter().any(|row| row == " 12:00 you maybe ✗ no such person"), "{rows:?}");
}

#[test]
fn how_the_client_stands_is_whole_on_any_screen() {
    let mut model = talk();
    let short = "this device was unlinked, or its account was deleted".to_owned();
    model.happened(Happening::Ended { short, advice: String::new() }, NOON_MS);
    let rows = screen(&model, 40, 24);
    assert_eq!(
        rows[21..],
        [
            " ada ✗ this device was unlinked, or its",
            "     account was deleted (/quit)",
            "     ◷ 1 unsent",
        ],
    );
}

#[test]
fn words_for_the_person_are_broken_instead_of_cut() {
    let mut model = talk();
    model.happened(Happening::Notice(vec!["one two three four five six".into()]), NOON_MS);
    let rows = screen(&model, 16, 10);
    assert_eq!(rows[5..7], ["one two three", "four five six"]);
}
