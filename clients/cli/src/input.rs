//! The line being typed. Pure.

/// Longest line that can be typed, in characters.
const LONGEST: usize = 8_000;

/// Text and a cursor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Input {
    text: Vec<char>,
    /// Characters before the cursor.
    cursor: usize,
}

/// One change of the line.
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

    pub(crate) fn before_cursor(&self) -> String {
        self.text[..self.cursor].iter().collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// The text; the line is empty afterwards.
    pub(crate) fn take(&mut self) -> String {
        self.cursor = 0;
        std::mem::take(&mut self.text).into_iter().collect()
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
                self.text.drain(..cursor);
                self.cursor = 0;
            }
            Edit::Left => self.cursor = cursor.saturating_sub(1),
            Edit::Right => self.cursor = (cursor + 1).min(self.text.len()),
            Edit::Home => self.cursor = 0,
            Edit::End => self.cursor = self.text.len(),
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
        assert_eq!((input.before_cursor(), input.take()), ("!".into(), "!grüe".into()));
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
}
