//! The text being typed: one line or several. Pure.

/// Longest text that can be typed, in characters: with four bytes each it is within the limit of a body.
pub(crate) const LONGEST: usize = 60_000;

/// Text and a cursor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Input {
    text: Vec<char>,
    /// Characters before the cursor.
    cursor: usize,
}

/// One change of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edit {
    Insert(char),
    Backspace,
    Delete,
    DeleteWord,
    DeleteLine,
    Left,
    Right,
    Home,
    End,
}

impl Input {
    pub(crate) fn text(&self) -> String {
        self.text.iter().collect()
    }

    /// Characters before the cursor.
    pub(crate) fn cursor(&self) -> usize {
        self.cursor
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// The text; nothing is left afterwards.
    pub(crate) fn take(&mut self) -> String {
        self.cursor = 0;
        std::mem::take(&mut self.text).into_iter().collect()
    }

    /// Replaces the text; the cursor is at its end.
    pub(crate) fn put(&mut self, text: &str) {
        self.text = text.chars().take(LONGEST).collect();
        self.cursor = self.text.len();
    }

    /// Inserts what was pasted; returns how many characters had no room.
    pub(crate) fn paste(&mut self, text: &str) -> usize {
        let room = LONGEST - self.text.len().min(LONGEST);
        let mut chars = text.chars();
        let taken: Vec<char> = chars.by_ref().take(room).collect();
        let end = self.cursor + taken.len();
        self.text.splice(self.cursor..self.cursor, taken);
        self.cursor = end;
        chars.count()
    }

    /// Whether the line ends in a backslash right before the cursor, which asks for a further line. The
    /// backslash becomes a line feed.
    pub(crate) fn continue_line(&mut self) -> bool {
        let at_end = self.cursor == self.text.len() && self.text.last() == Some(&'\\');
        if at_end && let Some(last) = self.text.last_mut() {
            *last = '\n';
        }
        at_end
    }

    /// Moves the cursor to the line above. Returns `false`, and moves nothing, in the first line.
    pub(crate) fn line_up(&mut self) -> bool {
        let start = self.line_start();
        if start == 0 {
            return false;
        }
        let column = self.cursor - start;
        let above = self.text[..start - 1].iter().rposition(|c| *c == '\n').map_or(0, |at| at + 1);
        self.cursor = above + column.min(start - 1 - above);
        true
    }

    /// Moves the cursor to the line below. Returns `false`, and moves nothing, in the last line.
    pub(crate) fn line_down(&mut self) -> bool {
        let end = self.line_end();
        if end == self.text.len() {
            return false;
        }
        let column = self.cursor - self.line_start();
        let below = &self.text[end + 1..];
        let length = below.iter().position(|c| *c == '\n').unwrap_or(below.len());
        self.cursor = end + 1 + column.min(length);
        true
    }

    fn line_start(&self) -> usize {
        self.text[..self.cursor].iter().rposition(|c| *c == '\n').map_or(0, |at| at + 1)
    }

    fn line_end(&self) -> usize {
        let after = &self.text[self.cursor..];
        after.iter().position(|c| *c == '\n').map_or(self.text.len(), |at| self.cursor + at)
    }

    pub(crate) fn edit(&mut self, edit: Edit) {
        let cursor = self.cursor;
        match edit {
            Edit::Insert(c) => {
                if self.text.len() < LONGEST {
                    self.text.insert(cursor, c);
                    self.cursor += 1;
                }
            }
            Edit::Backspace => {
                if cursor > 0 {
                    self.text.remove(cursor - 1);
                    self.cursor -= 1;
                }
            }
            Edit::Delete => {
                if cursor < self.text.len() {
                    self.text.remove(cursor);
                }
            }
            Edit::DeleteWord => {
                let before = &self.text[..cursor];
                let word = before.iter().rposition(|c| !c.is_whitespace()).map_or(0, |end| {
                    before[..end].iter().rposition(|c| c.is_whitespace()).map_or(0, |gap| gap + 1)
                });
                self.text.drain(word..cursor);
                self.cursor = word;
            }
            Edit::DeleteLine => {
                let start = self.line_start();
                self.text.drain(start..cursor);
                self.cursor = start;
            }
            Edit::Left => self.cursor = cursor.saturating_sub(1),
            Edit::Right => self.cursor = (cursor + 1).min(self.text.len()),
            Edit::Home => self.cursor = self.line_start(),
            Edit::End => self.cursor = self.line_end(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(text: &str) -> Input {
        let mut input = Input::default();
        text.chars().for_each(|c| input.edit(Edit::Insert(c)));
        input
    }

    #[test]
    fn the_line_is_edited_where_the_cursor_is() {
        let mut input = typed("grüße");
        for edit in [Edit::Left, Edit::Left, Edit::Backspace, Edit::Insert('ü'), Edit::Delete] {
            input.edit(edit);
        }
        assert_eq!(input.text(), "grüe");
        input.edit(Edit::Home);
        input.edit(Edit::Insert('!'));
        assert_eq!((input.cursor(), input.take()), (1, "!grüe".into()));
        assert!(input.is_empty());
    }

    #[test]
    fn words_and_lines_are_deleted_backwards() {
        let mut input = typed("one two  ");
        input.edit(Edit::DeleteWord);
        assert_eq!(input.text(), "one ");
        input.edit(Edit::DeleteWord);
        input.edit(Edit::DeleteWord);
        assert!(input.is_empty());
        let mut input = typed("one two");
        (0..3).for_each(|_| input.edit(Edit::Left));
        input.edit(Edit::DeleteLine);
        assert_eq!(input.text(), "two");
    }

    #[test]
    fn several_lines_are_edited_line_by_line() {
        let mut input = typed("first\\");
        assert!(input.continue_line());
        assert!(!input.continue_line(), "there is no second backslash");
        "two\nlast".chars().for_each(|c| input.edit(Edit::Insert(c)));
        assert!(input.line_up() && input.line_up() && !input.line_up());
        input.edit(Edit::End);
        input.edit(Edit::Insert('!'));
        assert!(input.line_down());
        input.edit(Edit::DeleteLine);
        assert!(input.line_down() && !input.line_down());
        input.edit(Edit::Home);
        input.edit(Edit::Insert('>'));
        assert_eq!(input.text(), "first!\n\n>last");
    }

    #[test]
    fn a_paste_lands_at_the_cursor_and_says_what_had_no_room() {
        let mut input = typed("ad");
        input.edit(Edit::Left);
        assert_eq!(input.paste("\nb\nc"), 0);
        assert_eq!((input.text().as_str(), input.cursor()), ("a\nb\ncd", 5));
        assert_eq!(input.paste(&"x".repeat(LONGEST)), 6);
        assert_eq!(input.text().len(), LONGEST);
    }
}
