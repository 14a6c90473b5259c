//! The screen: conversations on the left, the open one on the right, the line being typed, the
//! state of the connection. Pure: draws the model.

use crate::{
    input::Input,
    model::{Connection, Conversation, Line as Said, Model, Side, Tick},
};
use jiff::{Timestamp, tz::TimeZone};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Position, Rect},
    style::{Color, Style, Stylize},
    text::{Line, Span},
    widgets::{Block, Borders, Paragraph},
};

/// Columns of the list of conversations; left out on a narrower screen than [`LIST_FROM`].
const LIST_COLUMNS: u16 = 24;
const LIST_FROM: u16 = 60;

/// Stands before the text being typed.
const PROMPT: &str = "> ";

/// Draws the model as of `now_ms`. Returns how far it is really scrolled up.
pub(crate) fn draw(frame: &mut Frame<'_>, model: &Model, now_ms: u64, zone: &TimeZone) -> usize {
    let area = frame.area();
    let said = status_lines(model, usize::from(area.width));
    let rows = rows_of(said.len()).min((area.height / 3).max(1));
    let [main, status] =
        Layout::vertical([Constraint::Min(1), Constraint::Length(rows)]).areas(area);
    frame.render_widget(Paragraph::new(said), status);
    let main = if area.width >= LIST_FROM {
        let columns = [Constraint::Length(LIST_COLUMNS), Constraint::Min(1)];
        let [left, right] = Layout::horizontal(columns).areas(main);
        draw_list(frame, model, left);
        right
    } else {
        main
    };
    let columns = usize::from(main.width).max(8);
    let asked = model.question.iter().flat_map(|question| &question.words);
    let said = model.news.iter().chain(asked).chain(&model.notice);
    let notice: Vec<String> = said.flat_map(|line| wrap(line, columns)).collect();
    let typed = Typed::of(&model.input, usize::from(main.width));
    let input_rows = rows_of(typed.rows.len()).min((main.height / 2).max(1));
    // The newest message stays in sight, if there is room for anything.
    let spare = main.height.saturating_sub(input_rows + 3);
    let rows = [
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(rows_of(notice.len()).min(spare)),
        Constraint::Length(input_rows),
    ];
    let [head, body, words, input] = Layout::vertical(rows).areas(main);
    frame.render_widget(Paragraph::new(head_line(model, columns, now_ms, zone)), head);
    let scrolled = draw_messages(frame, model, body, now_ms, zone);
    let lines = notice.iter().map(|line| Line::from(line.as_str()).yellow());
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), words);
    draw_input(frame, &typed, input);
    scrolled
}

fn rows_of(lines: usize) -> u16 {
    u16::try_from(lines).unwrap_or(u16::MAX)
}

/// Who one is, and how the client stands, in as many rows as it takes.
fn status_lines(model: &Model, columns: usize) -> Vec<Line<'static>> {
    let (mark, words, color) = match &model.connection {
        Connection::Online => ("●", "connected".to_owned(), Color::Green),
        Connection::Connecting => ("○", "connecting …".to_owned(), Color::Yellow),
        Connection::Offline(reason) => ("○", format!("offline: {reason}"), Color::Yellow),
        Connection::Ended(reason) => ("✗", format!("{reason} (/quit)"), Color::Red),
    };
    let waiting = model.conversations.iter().map(waiting_lines).sum::<usize>();
    let waiting = if waiting > 0 { format!("  ◷ {waiting} unsent") } else { String::new() };
    let me = format!(" {} ", cut(&model.me.to_string(), columns / 2));
    let room = columns.saturating_sub(width(&me)).max(8);
    let mut rows = wrap(&format!("{mark} {words}"), room);
    let last = rows.pop().unwrap_or_default();
    let mut lines: Vec<Line<'static>> =
        rows.into_iter().map(|row| Line::from(row).fg(color)).collect();
    let mut end = vec![Span::raw(last).fg(color)];
    if end[0].width() + width(&waiting) <= room {
        end.push(Span::raw(waiting).dim());
        lines.push(Line::from(end));
    } else {
        lines.extend([Line::from(end), Line::from(waiting.trim_start().to_owned()).dim()]);
    }
    let indent = " ".repeat(width(&me));
    for (row, line) in lines.iter_mut().enumerate() {
        let before =
            if row == 0 { Span::raw(me.clone()).bold() } else { Span::raw(indent.clone()) };
        line.spans.insert(0, before);
    }
    lines.into_iter().map(Line::on_dark_gray).collect()
}

fn waiting_lines(conversation: &Conversation) -> usize {
    let waits = |said: &&Said| matches!(said.side, Side::Mine { tick: Tick::Waiting, .. });
    conversation.lines.iter().filter(waits).count()
}

fn draw_list(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let room = usize::from(area.width.saturating_sub(2));
    let lines = model.conversations.iter().enumerate().map(|(index, conversation)| {
        let open = model.open == Some(index);
        let online = matches!(conversation.presence, Some((true, _)));
        let unread = conversation.unread();
        let count = if unread > 0 { format!(" {unread} ") } else { String::new() };
        let name = cut(&model.name(conversation.user), room.saturating_sub(count.len() + 2));
        let gap = room.saturating_sub(2 + width(&name) + count.len());
        let name = if unread > 0 { Span::raw(name).bold() } else { Span::raw(name) };
        let dot = if online { Span::raw("● ").green() } else { Span::raw("  ") };
        let count = Span::raw(count).black().on_green();
        let line = Line::from(vec![dot, name, Span::raw(" ".repeat(gap)), count]);
        if open { line.reversed() } else { line }
    });
    let lines: Vec<Line<'_>> = lines.take(usize::from(area.height)).collect();
    let block = Block::new().borders(Borders::RIGHT).border_style(Style::new().dark_gray());
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn head_line(model: &Model, columns: usize, now_ms: u64, zone: &TimeZone) -> Line<'static> {
    let Some(open) = model.opened() else { return Line::from(" natter").bold() };

    let state = if open.typing_until_ms > now_ms {
        Span::raw("  is typing …").green()
    } else {
        match open.presence {
            Some((true, _)) => Span::raw("  online").green(),
            Some((false, last)) if last > 0 => {
                Span::raw(format!("  last seen {}", moment(last, now_ms, zone))).dim()
            }
            Some((false, _)) | None => Span::raw(""),
        }
    };
    let room = columns.saturating_sub(state.width() + 1).max(columns / 2);
    let name = cut(&model.name(open.user), room);
    Line::from(vec![Span::raw(format!(" {name}")).bold(), state])
}

fn draw_messages(
    frame: &mut Frame<'_>,
    model: &Model,
    area: Rect,
    now_ms: u64,
    zone: &TimeZone,
) -> usize {
    let Some(open) = model.opened() else { return 0 };
    let room = usize::from(area.height);
    let columns = usize::from(area.width);
    // Newest first, and no more than can be seen: a long history costs nothing.
    let wanted = room.saturating_add(model.scroll);
    let mut rows: Vec<Line<'static>> = Vec::new();
    for said in open.lines.iter().rev() {
        let name = model.name(open.user);
        rows.extend(
            message(said, &name, columns, &moment(said.at_ms, now_ms, zone)).into_iter().rev(),
        );
        if rows.len() >= wanted {
            break;
        }
    }
    let scrolled = model.scroll.min(rows.len().saturating_sub(room));
    let mut seen: Vec<Line<'static>> = rows.into_iter().skip(scrolled).take(room).collect();
    seen.resize(room, Line::default());
    seen.reverse();
    frame.render_widget(Paragraph::new(seen), area);
    scrolled
}

/// One message as rows of the screen.
fn message(said: &Said, name: &str, columns: usize, at: &str) -> Vec<Line<'static>> {
    let (who, tick) = match &said.side {
        Side::Mine { tick, .. } => (Span::raw("you").cyan(), Some(tick)),
        Side::Theirs { .. } => (Span::raw(cut(name, 20)).magenta(), None),
    };
    let mut head = vec![Span::raw(format!(" {at} ")).dim(), who, Span::raw(" ")];
    let indent = head.iter().map(Span::width).sum::<usize>();
    // The ticks stand behind the last row; room for them is kept on every row.
    let room = columns.saturating_sub(indent + 5).max(8);
    let texts: Vec<String> = said.text.split('\n').flat_map(|line| wrap(line, room)).collect();
    let last = texts.len().saturating_sub(1);
    let mut rows = Vec::new();
    for (row, text) in texts.into_iter().enumerate() {
        let mut spans =
            if row == 0 { std::mem::take(&mut head) } else { vec![Span::raw(" ".repeat(indent))] };
        spans.push(Span::raw(text));
        if row == last {
            spans.extend(tick.map(tick_span));
        }
        rows.push(Line::from(spans));
    }
    if let Some(Tick::Failed(why)) = tick {
        add_reason(&mut rows, why, indent, columns);
    }
    rows
}

/// Why a message was refused: behind its sign if there is room, else in rows below.
fn add_reason(rows: &mut Vec<Line<'static>>, why: &str, indent: usize, columns: usize) {
    if let Some(last) = rows.last_mut()
        && last.width() + 1 + width(why) <= columns
    {
        last.push_span(Span::raw(format!(" {why}")).red());
        return;
    }
    let room = columns.saturating_sub(indent).max(8);
    let row = |text| Line::from(vec![Span::raw(" ".repeat(indent)), Span::raw(text).red()]);
    rows.extend(wrap(why, room).into_iter().map(row));
}

fn tick_span(tick: &Tick) -> Span<'static> {
    let sign = Span::raw(format!(" {}", tick.sign()));
    match tick {
        Tick::Waiting | Tick::Accepted | Tick::Delivered => sign.dim(),
        Tick::Read => sign.light_blue(),
        Tick::Failed(_) => sign.red(),
    }
}

/// The text being typed, as rows of the screen.
struct Typed {
    rows: Vec<String>,
    /// Row and column of the cursor.
    cursor: (usize, usize),
}

impl Typed {
    /// Breaks the text anywhere: what is typed must not jump to another row with each letter.
    fn of(input: &Input, columns: usize) -> Self {
        let room = columns.saturating_sub(PROMPT.len() + 1).max(1);
        let mut rows = vec![String::new()];
        let (mut used, mut cursor) = (0, (0, 0));
        for (index, c) in input.text().chars().enumerate() {
            let wide = char_width(c);
            if c != '\n' && used + wide > room {
                rows.push(String::new());
                used = 0;
            }
            if index == input.cursor() {
                cursor = (rows.len() - 1, used);
            }
            if c == '\n' {
                rows.push(String::new());
                used = 0;
            } else if let Some(row) = rows.last_mut() {
                row.push(c);
                used += wide;
            }
        }
        if input.cursor() == input.text().chars().count() {
            cursor = (rows.len() - 1, used);
        }
        Self { rows, cursor }
    }
}

fn draw_input(frame: &mut Frame<'_>, typed: &Typed, area: Rect) {
    let (row, column) = typed.cursor;
    // Of a text that is taller than its box, the rows around the cursor.
    let hidden = (row + 1).saturating_sub(usize::from(area.height).max(1));
    let shown = typed.rows.iter().enumerate().skip(hidden).take(usize::from(area.height));
    let line = |(index, text): (usize, &String)| {
        let prompt = if index == 0 { PROMPT } else { "  " };
        Line::from(vec![Span::raw(prompt).green(), Span::raw(text.clone())])
    };
    frame.render_widget(Paragraph::new(shown.map(line).collect::<Vec<_>>()), area);
    let x = rows_of(PROMPT.len() + column).min(area.width.saturating_sub(1));
    let y = rows_of(row - hidden).min(area.height.saturating_sub(1));
    frame.set_cursor_position(Position::new(area.x.saturating_add(x), area.y.saturating_add(y)));
}

/// The time of day, with the date if it was another day.
fn moment(at_ms: u64, now_ms: u64, zone: &TimeZone) -> String {
    let local = |ms: u64| {
        let stamp = Timestamp::from_millisecond(i64::try_from(ms).unwrap_or(i64::MAX));
        stamp.unwrap_or_default().to_zoned(zone.clone())
    };
    let (at, now) = (local(at_ms), local(now_ms));
    let format = if at.date() == now.date() { "%H:%M" } else { "%m-%d %H:%M" };
    at.strftime(format).to_string()
}

fn width(text: &str) -> usize {
    Span::raw(text).width()
}

fn char_width(c: char) -> usize {
    width(c.encode_utf8(&mut [0; 4]))
}

/// The text, shortened to `room` columns.
fn cut(text: &str, room: usize) -> String {
    if width(text) <= room {
        return text.to_owned();
    }
    let mut short = String::new();
    for c in text.chars() {
        if width(&short) + char_width(c) + 1 > room {
            break;
        }
        short.push(c);
    }
    short.push('…');
    short
}

/// Rows of at most `room` columns, broken at spaces where there are some.
fn wrap(text: &str, room: usize) -> Vec<String> {
    let mut rows = vec![String::new()];
    let mut used = 0;
    for word in text.split_inclusive(' ') {
        let wide = width(word.trim_end());
        if used > 0 && used + wide > room {
            rows.push(String::new());
            used = 0;
        }
        for c in word.chars() {
            let columns = char_width(c);
            if used + columns > room && c != ' ' {
                rows.push(String::new());
                used = 0;
            }
            if let Some(row) = rows.last_mut() {
                row.push(c);
            }
            used += columns;
        }
    }
    rows.into_iter().map(|row| row.trim_end().to_owned()).collect()
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
