//! Logged in and silent: answers heartbeats until the server's memory has settled.

use std::time::Duration;

use anyhow::Result;

use crate::clock::{MS_NS, SECOND_NS};
use crate::hot::{Frame, put_pong};
use crate::net::{At, Net, Next, Traffic};
use crate::process::resident_kib;

/// Time between two looks at the server's memory.
const LOOK_NS: u64 = 500 * MS_NS;

/// Looks that must agree.
const LOOKS: usize = 8;

/// How far they may be apart, as a part of the memory.
const AGREE: u64 = 500;

/// Longest wait.
const PATIENCE_NS: u64 = 30 * SECOND_NS;

/// Listens until the memory of the servers stays the same.
#[derive(Debug)]
pub(crate) struct Listen {
    pids: Vec<u32>,
    begin_ns: Option<u64>,
    next_ns: u64,
    looks: Vec<u64>,
}

impl Listen {
    pub(crate) fn new(pids: Vec<u32>) -> Self {
        Self { pids, begin_ns: None, next_ns: 0, looks: Vec::new() }
    }

    fn settled(&self) -> bool {
        let Some(last) = self.looks.len().checked_sub(LOOKS).map(|from| &self.looks[from..]) else {
            return false;
        };
        let (low, high) = (last.iter().min(), last.iter().max());
        low.zip(high).is_some_and(|(low, high)| high - low <= high / AGREE)
    }
}

impl Traffic for Listen {
    fn frame(&mut self, _at: At, frame: &Frame<'_>, out: &mut Vec<u8>) -> Result<()> {
        if *frame == Frame::Ping {
            put_pong(out);
        }
        Ok(())
    }

    fn batch(&mut self, _at: At, _out: &mut Vec<u8>) -> Result<()> {
        Ok(())
    }

    fn round(&mut self, net: &mut Net) -> Result<Next> {
        let now_ns = net.now_ns();
        let begin_ns = *self.begin_ns.get_or_insert(now_ns);
        if now_ns >= self.next_ns {
            self.looks.push(resident_kib(&self.pids)?);
            self.next_ns = now_ns + LOOK_NS;
        }
        if self.settled() || now_ns - begin_ns >= PATIENCE_NS {
            return Ok(Next::Finished);
        }
        Ok(Next::Within(Duration::from_nanos(self.next_ns - now_ns)))
    }
}
