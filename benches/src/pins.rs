//! PINs as the server's log sender prints them: `natter-pin alias=<alias> pin=<pin>`.
//!
//! A thread reads them as they come, so that the server never waits for its output to be read.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

/// How often a file is looked at for more.
const FILE_PAUSE: Duration = Duration::from_millis(2);

/// The PINs not used yet, by alias.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pins(Arc<Mutex<HashMap<String, String>>>);

impl Pins {
    /// Reads from a pipe until its end.
    pub(crate) fn follow_pipe(&self, pipe: impl Read + Send + 'static) {
        let pins = self.clone();
        thread::spawn(move || pins.read(&mut BufReader::new(pipe), || false));
    }

    /// Reads from a file, for ever.
    pub(crate) fn follow_file(&self, path: &Path) -> Result<()> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let pins = self.clone();
        let wait = || {
            thread::sleep(FILE_PAUSE);
            true
        };
        thread::spawn(move || pins.read(&mut BufReader::new(file), wait));
        Ok(())
    }

    /// Takes the PIN of `alias`, if it has come.
    pub(crate) fn take(&self, alias: &str) -> Option<String> {
        self.0.lock().remove(alias)
    }

    /// Reads lines; at the end `wait` says whether more may come.
    fn read(&self, input: &mut impl BufRead, wait: impl Fn() -> bool) {
        let mut line = Vec::new();
        loop {
            match input.read_until(b'\n', &mut line) {
                Ok(_) if line.ends_with(b"\n") => {
                    if let Some((alias, pin)) = parse(&String::from_utf8_lossy(&line)) {
                        self.0.lock().insert(alias, pin);
                    }
                    line.clear();
                }
                Ok(_) if wait() => {}
                Ok(_) | Err(_) => return,
            }
        }
    }
}

fn parse(line: &str) -> Option<(String, String)> {
    let (_, rest) = line.split_once("natter-pin ")?;
    let mut words = rest.split_whitespace();
    let alias = words.next()?.strip_prefix("alias=")?;
    let pin = words.next()?.strip_prefix("pin=")?;
    Some((alias.into(), pin.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_found_between_other_lines_and_given_out_once() {
        let pins = Pins::default();
        let text = "started\nnatter-pin alias=load-1 pin=012345\nnatter-pin alias=x\n";
        pins.read(&mut text.as_bytes(), || false);
        assert_eq!(pins.take("load-1").as_deref(), Some("012345"));
        assert_eq!(pins.take("load-1"), None);
        assert_eq!(pins.take("x"), None);
    }
}
