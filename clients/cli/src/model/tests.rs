//! What a person sees after what happens.

use super::*;
use crate::input::Edit;

const BOB: u64 = 5;

fn alias(name: &str) -> Alias {
    Alias::parse(name).unwrap()
}

fn model() -> Model {
    let mut model = Model::new(alias("ada"), 1, 1);
    model.happened(Happening::Connected, 0);
    model
}

fn with_bob() -> Model {
    let mut model = model();
    model.happened(Happening::Found { alias: alias("bob"), user: BOB, open: true }, 0);
    model
}

fn message(send_id: u64, text: &str) -> Happening {
    let body = Body { claims: Some(alias("bob")), text: text.into() };
    Happening::Message { from: BOB, device: 1, send_id, at_ms: 10 + send_id, body }
}

fn type_line(model: &mut Model, line: &str) -> Vec<Act> {
    for c in line.chars() {
        model.key(Key::Edit(Edit::Insert(c)), 0);
    }
    model.key(Key::Enter, 0)
}

fn ticks(model: &Model) -> Vec<Tick> {
    let lines = &model.opened().unwrap().lines;
    let tick = |line: &Line| match &line.side {
        Side::Mine { tick, .. } => Some(tick.clone()),
        Side::Theirs { .. } => None,
    };
    lines.iter().filter_map(tick).collect()
}

fn ticked(send_ids: &[u64], tick: Tick) -> Happening {
    Happening::Ticked { to: BOB, device: 1, send_ids: send_ids.to_vec(), tick }
}

#[test]
fn ticks_rise_and_never_fall() {
    let mut model = with_bob();
    assert_eq!(type_line(&mut model, "hi"), [Act::Send { to: BOB, text: "hi".into() }]);
    for send_id in [1, 2] {
        let text = "hi".into();
        model.happened(Happening::Sent { to: BOB, device: 1, send_id, at_ms: 0, text }, 0);
    }
    assert_eq!(ticks(&model), [Tick::Waiting, Tick::Waiting]);
    model.happened(ticked(&[1, 2], Tick::Delivered), 0);
    model.happened(ticked(&[1], Tick::Accepted), 0);
    model.happened(ticked(&[2], Tick::Read), 0);
    assert_eq!(ticks(&model), [Tick::Delivered, Tick::Read]);
}

#[test]
fn a_message_is_shown_once_and_read_when_its_conversation_is_open() {
    let mut model = model();
    let acts = model.happened(message(7, "hello"), 0);
    assert_eq!(acts, [Act::Lookup { alias: alias("bob"), open: false }]);
    assert_eq!(model.name(BOB), "user 5", "a claim is not believed");
    assert_eq!(model.happened(message(7, "hello"), 0), []);
    assert_eq!((model.conversations[0].lines.len(), model.conversations[0].unread()), (1, 1));

    let found = Happening::Found { alias: alias("bob"), user: BOB, open: false };
    assert_eq!(model.happened(found, 0), [Act::SaveNames]);
    assert_eq!(model.name(BOB), "bob");
    let acts = model.key(Key::NextConversation, 0);
    let read = Act::MarkRead { from: BOB, device: 1, send_ids: vec![7] };
    assert_eq!(acts, [Act::Watch { user: BOB, watch: true }, read]);
    let read = Act::MarkRead { from: BOB, device: 1, send_ids: vec![8] };
    assert_eq!(model.happened(message(8, "there"), 0), [read]);
    assert_eq!(model.conversations[0].unread(), 0);
}

#[test]
fn what_could_not_be_marked_is_marked_after_the_next_connection() {
    let mut model = with_bob();
    model.happened(message(7, "hello"), 0);
    model.happened(Happening::Disconnected("gone".into()), 0);
    model.happened(Happening::NotMarked { from: BOB, device: 1, send_ids: vec![7] }, 0);
    assert_eq!(model.happened(message(8, "two"), 0), [], "nobody can be told");
    let read = Act::MarkRead { from: BOB, device: 1, send_ids: vec![7, 8] };
    assert_eq!(model.happened(Happening::Connected, 0), [read]);
}

#[test]
fn an_alias_that_is_claimed_by_somebody_else_names_nobody() {
    let mut model = model();
    model.happened(message(7, "i am bob"), 0);
    let acts = model.happened(Happening::Found { alias: alias("bob"), user: 99, open: false }, 0);
    assert_eq!(acts, []);
    assert_eq!(model.name(BOB), "user 5");
}

#[test]
fn typing_is_told_now_and_then_and_its_end_at_once() {
    let mut model = with_bob();
    let told = |typing| vec![Act::Typing { to: BOB, typing }];
    assert_eq!(model.key(Key::Edit(Edit::Insert('a')), 10_000), told(true));
    assert_eq!(model.key(Key::Edit(Edit::Insert('b')), 11_000), []);
    assert_eq!(model.key(Key::Edit(Edit::Insert('c')), 13_000), told(true));
    assert_eq!(model.key(Key::Edit(Edit::DeleteLine), 13_001), told(false));
    assert_eq!(model.key(Key::Edit(Edit::Insert('/')), 20_000), [], "commands are no message");
}

#[test]
fn the_conversation_that_changed_last_stands_first_and_the_open_one_stays_open() {
    let mut model = with_bob();
    let body = Body { claims: None, text: "psst".into() };
    let other = Happening::Message { from: 9, device: 1, send_id: 1, at_ms: 0, body };
    model.happened(other, 0);
    assert_eq!(model.conversations.iter().map(|c| c.user).collect::<Vec<_>>(), [9, BOB]);
    assert_eq!(model.opened().unwrap().user, BOB);
}

#[test]
fn a_conversation_is_bounded() {
    let mut model = with_bob();
    for send_id in 0..LINES_MAX as u64 + 5 {
        model.happened(message(send_id, "x"), 0);
    }
    let lines = &model.opened().unwrap().lines;
    assert_eq!((lines.len(), lines[0].at_ms), (LINES_MAX, 15));
}

#[test]
fn an_account_is_deleted_only_by_its_own_alias() {
    let mut model = model();
    assert_eq!(type_line(&mut model, "/delete-account bob"), []);
    assert!(model.notice[0].contains("/delete-account ada"));
    assert_eq!(type_line(&mut model, "/delete-account ada"), [Act::DeleteAccount]);
}

#[test]
fn commands_without_a_conversation_say_what_is_missing() {
    let mut model = model();
    assert_eq!(type_line(&mut model, "hello"), []);
    assert_eq!(model.notice, ["no conversation is open: /to ALIAS"]);
    assert_eq!(model.input.take(), "hello", "nothing that was typed is lost");
    let look = Act::Lookup { alias: alias("bob"), open: true };
    assert_eq!(type_line(&mut model, "/to bob"), [look]);
}

#[test]
fn seventy_pasted_lines_are_one_message_that_is_sent_by_enter() {
    let mut model = with_bob();
    let lines: Vec<String> = (1..=70).map(|line| format!("line {line}")).collect();
    let acts = model.pasted(&(lines.join("\r\n") + "\r\n"), 10_000);
    assert_eq!(acts, [Act::Typing { to: BOB, typing: true }], "nothing is sent yet");
    let text = lines.join("\n");
    assert_eq!(model.key(Key::Enter, 10_000), [Act::Send { to: BOB, text }]);
}

#[test]
fn a_message_of_several_lines_is_typed_with_alt_enter_or_a_backslash() {
    let mut model = with_bob();
    model.pasted("one", 0);
    model.key(Key::NewLine, 0);
    model.pasted("two\\", 0);
    assert_eq!(model.key(Key::Enter, 0), []);
    let sent = type_line(&mut model, "three");
    assert_eq!(sent, [Act::Send { to: BOB, text: "one\ntwo\nthree".into() }]);
}

#[test]
fn the_end_of_input_ends_the_chat_only_if_nothing_is_typed() {
    let mut model = with_bob();
    model.key(Key::Edit(Edit::Insert('x')), 0);
    assert_eq!(model.key(Key::EndOfInput, 0), []);
    model.key(Key::Edit(Edit::Backspace), 0);
    assert_eq!(model.key(Key::EndOfInput, 0), [Act::Quit]);
}

#[test]
fn ones_own_device_is_unlinked_only_after_a_yes_and_no_answer_is_sent_to_anybody() {
    let mut model = with_bob();
    assert_eq!(type_line(&mut model, "/unlink 2"), [Act::Unlink(2)], "another device");
    for command in ["/unlink 1", "/logout"] {
        for yes in ["yes", " Y ", command] {
            assert_eq!(type_line(&mut model, command), []);
            let asked = model.question.clone().unwrap().words;
            assert!(asked.iter().any(|line| line.contains("type yes")), "{asked:?}");
            model.happened(message(7, "meanwhile"), 0);
            assert!(model.question.is_some(), "news do not hide a question");
            assert_eq!(type_line(&mut model, yes), [Act::LogOut]);
        }
        type_line(&mut model, command);
        assert_eq!(type_line(&mut model, "no"), []);
        assert_eq!(model.question, None);
    }
}

#[test]
fn a_line_that_answers_no_question_stays_to_be_sent() {
    let mut model = with_bob();
    type_line(&mut model, "/logout");
    assert_eq!(type_line(&mut model, "see you at nine"), []);
    assert_eq!(model.input.text(), "see you at nine");
    let sent = Act::Send { to: BOB, text: "see you at nine".into() };
    assert_eq!(model.key(Key::Enter, 0), [sent]);
    type_line(&mut model, "/logout");
    assert_eq!(type_line(&mut model, "/devices"), [Act::ShowAccount], "another command");
    assert!(model.question.is_none());
    type_line(&mut model, "/logout");
    model.key(Key::Escape, 0);
    let sent = Act::Send { to: BOB, text: "yes".into() };
    assert_eq!(type_line(&mut model, "yes"), [sent]);
}

#[test]
fn a_wrong_command_stays_to_be_mended() {
    let mut model = with_bob();
    assert_eq!(type_line(&mut model, "/nope and a long text"), []);
    assert_eq!(model.input.take(), "/nope and a long text");
}

#[test]
fn an_alias_that_has_a_new_owner_leads_to_the_new_one() {
    let mut model = with_bob();
    let look = Act::Lookup { alias: alias("bob"), open: true };
    assert_eq!(type_line(&mut model, "/to bob"), [look], "what is remembered is asked again");
    model.happened(Happening::Found { alias: alias("bob"), user: 6, open: true }, 0);
    assert_eq!(model.opened().unwrap().user, 6);
    assert_eq!(model.name(BOB), "user 5");
}

#[test]
fn the_device_whose_code_was_typed_is_linked_and_no_other() {
    let mut model = model();
    let asks = |model: &mut Model, key: u8| {
        let name = "a tablet".to_owned();
        model.happened(Happening::LinkRequested { key: vec![key; 32], name }, 0)
    };
    assert_eq!(asks(&mut model, 7), [], "nobody asked for it");
    assert!(model.notice.concat().contains("/to ALIAS"), "and nobody is told of it");
    let code = LinkCode::of(&alias("ada"), &[7; 32]);
    assert_eq!(type_line(&mut model, &format!("/link {code}")), []);
    assert_eq!(asks(&mut model, 8), []);
    let link = |name: &str| Act::Link { key: vec![7; 32], name: name.to_owned() };
    assert_eq!(asks(&mut model, 7), [link("a tablet")]);
    assert_eq!(asks(&mut model, 7), [], "once");
    type_line(&mut model, &format!("/link {code} my tablet"));
    assert_eq!(asks(&mut model, 7), [link("my tablet")]);
}

#[test]
fn who_waits_in_vain_for_a_device_is_told() {
    let mut model = model();
    type_line(&mut model, "/link k7fm2-9pqx4");
    model.passed(59_000);
    assert!(model.notice.concat().contains("waiting"), "{:?}", model.notice);
    model.passed(60_000);
    assert!(model.notice.concat().contains("Compare the code"), "{:?}", model.notice);
    let code = LinkCode::of(&alias("ada"), &[7; 32]);
    type_line(&mut model, &format!("/link {code}"));
    model.passed(61_000);
    let late = Happening::LinkRequested { key: vec![7; 32], name: String::new() };
    assert_eq!(model.happened(late, 61_000), [], "it was too late");
}

#[test]
fn news_stay_in_sight_until_something_is_typed() {
    let mut model = model();
    let news = |text: &str| Happening::News(text.to_owned());
    for text in ["one", "two", "two"] {
        model.happened(news(text), 0);
    }
    assert_eq!(model.news, ["one", "two"], "what is said again stands there once");
    for text in ["three", "two", "four"] {
        model.happened(news(text), 0);
    }
    assert_eq!(model.news, ["three", "two", "four"], "the newest");
    model.happened(Happening::Found { alias: alias("bob"), user: BOB, open: true }, 0);
    model.happened(message(7, "hello"), 0);
    assert_eq!(model.news.len(), 3, "a conversation that opens hides nothing");
    type_line(&mut model, "hello");
    assert!(model.news.is_empty());
}
