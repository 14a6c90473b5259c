//! What the newcomer reads: lines that stay and, on a terminal, a picture under them that is drawn
//! anew in its place. Written to by everyone in the demo.
//!
//! **Invariant:** without a terminal there are only lines, and no line is written twice in a row.

use parking_lot::Mutex;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;

/// The nodes as they are now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Picture {
    /// For a terminal: a line for each node.
    pub(super) lines: Vec<String>,
    /// For anything else.
    pub(super) line: String,
}

/// The way to the newcomer's eyes. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Screen(Arc<Mutex<Canvas>>);

#[derive(Debug)]
struct Canvas {
    is_terminal: bool,
    picture: Picture,
    /// Lines of the picture that are on the terminal now, all at its end.
    drawn: usize,
}

impl Screen {
    pub(super) fn new() -> Self {
        let is_terminal = io::stdout().is_terminal();
        Self(Arc::new(Mutex::new(Canvas { is_terminal, picture: Picture::default(), drawn: 0 })))
    }

    /// Tells the newcomer something.
    pub(super) fn tell(&self, line: &str) {
        self.change(|canvas| canvas.show(Some(line)));
    }

    /// Shows the nodes as they are now.
    pub(super) fn draw(&self, picture: Picture) {
        self.change(|canvas| {
            if canvas.picture == picture {
                return;
            }
            let is_news = canvas.picture.line != picture.line;
            canvas.picture = picture;
            if canvas.is_terminal {
                canvas.show(None);
            } else if is_news {
                let line = canvas.picture.line.clone();
                canvas.show(Some(&line));
            }
        });
    }

    /// Takes the picture away: there is nothing to see any more.
    pub(super) fn wipe(&self) {
        self.change(|canvas| {
            canvas.picture = Picture::default();
            canvas.show(None);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Canvas)) {
        change(&mut self.0.lock());
    }
}

impl Canvas {
    fn show(&mut self, line: Option<&str>) {
        // In one piece, so that nothing flickers.
        let mut text = String::new();
        if self.drawn > 0 {
            text = format!("\x1b[{}A\x1b[J", self.drawn);
            self.drawn = 0;
        }
        if let Some(line) = line {
            text += line;
            text.push('\n');
        }
        if self.is_terminal && !self.picture.lines.is_empty() {
            // Without wrapping a line is a row, also on a narrow terminal.
            text += "\x1b[?7l\n";
            for line in &self.picture.lines {
                text += line;
                text.push('\n');
            }
            text += "\x1b[?7h";
            self.drawn = self.picture.lines.len() + 1;
        }
        let mut out = io::stdout().lock();
        // A newcomer who closed the terminal is told nothing.
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).ok();
    }
}
