//! Bringing people in: registration, login, resumption, a bounded number at once.
//!
//! **Invariant:** every person registers as a phone does: alias, PIN, proof of a key of their own.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use bytes::Bytes;
use proto::wire::{Login, RegisterProve, RegisterStart, Resume, client_frame::Kind};
use proto::{Alias, DeviceId, UserId, signed};

use crate::cold::{self, Cold};
use crate::hot::{Frame, put_pong};
use crate::net::{At, Net, Next, Traffic};
use crate::pins::Pins;

/// Longest wait for frames while nobody waits for a PIN.
const IDLE_WAIT: Duration = Duration::from_millis(100);

/// How often PINs are looked for.
const PIN_WAIT: Duration = Duration::from_millis(1);

/// Somebody with one device.
#[derive(Debug)]
pub(crate) struct Person {
    alias: Alias,
    key: Ed25519KeyPair,
    pub(crate) user: u64,
    device: u32,
    ticket: Bytes,
}

/// Makes `count` people that no server knows.
pub(crate) fn strangers(count: usize) -> Result<Vec<Person>> {
    let run: u32 = rand::random();
    (0..count)
        .map(|number| {
            Ok(Person {
                alias: Alias::parse(&format!("load-{run:08x}-{number}"))?,
                key: Ed25519KeyPair::generate().ok().context("no key could be made")?,
                user: 0,
                device: 0,
                ticket: Bytes::new(),
            })
        })
        .collect()
}

/// How people come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Register,
    Login,
    Resume,
}

/// How far one person is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Outside,
    AwaitsWelcome,
    AwaitsPin { nonce: Bytes, token: Bytes },
    AwaitsAnswer,
    Inside,
}

/// Brings people in; person 0 gets slot `first_slot` and so on. Connections stay open.
#[derive(Debug)]
pub(crate) struct Arrival<'a> {
    pub(crate) way: Way,
    pub(crate) first_slot: usize,
    pub(crate) people: &'a mut [Person],
    pub(crate) pins: &'a Pins,
    pub(crate) parallel: usize,
    stages: Vec<Stage>,
    begun: usize,
    inside: usize,
    wait_for_pin: Vec<usize>,
    unanswered_max: u32,
}

impl<'a> Arrival<'a> {
    pub(crate) fn new(
        way: Way,
        first_slot: usize,
        people: &'a mut [Person],
        pins: &'a Pins,
        parallel: usize,
    ) -> Self {
        let stages = vec![Stage::Outside; people.len()];
        let wait_for_pin = Vec::new();
        Self {
            way,
            first_slot,
            people,
            pins,
            parallel,
            stages,
            begun: 0,
            inside: 0,
            wait_for_pin,
            unanswered_max: 0,
        }
    }

    /// Sends of one device that may wait for their answer, as `Welcome` said.
    pub(crate) fn unanswered_max(&self) -> usize {
        self.unanswered_max as usize
    }

    fn welcomed(&mut self, index: usize, nonce: Bytes, out: &mut Vec<u8>) {
        let person = &self.people[index];
        self.stages[index] = match self.way {
            Way::Register => {
                let alias = person.alias.as_str().to_owned();
                cold::put(out, 1, Kind::RegisterStart(RegisterStart { alias }));
                Stage::AwaitsPin { nonce, token: Bytes::new() }
            }
            Way::Login => {
                let bytes = signed::login(&nonce, UserId(person.user), DeviceId(person.device));
                let signature = Bytes::copy_from_slice(person.key.sign(&bytes).as_ref());
                let (user, device) = (person.user, person.device);
                let away = false;
                let login = Login { user, device, signature, acknowledged: 0, away };
                cold::put(out, 1, Kind::Login(login));
                Stage::AwaitsAnswer
            }
            Way::Resume => {
                cold::put(out, 1, Kind::Resume(resume(person)));
                Stage::AwaitsAnswer
            }
        };
    }

    fn answered(&mut self, index: usize, answer: Cold, out: &mut Vec<u8>) -> Result<()> {
        match (answer, &mut self.stages[index]) {
            (Cold::Welcome { nonce, unanswered_max }, Stage::AwaitsWelcome) => {
                self.unanswered_max = unanswered_max;
                self.welcomed(index, nonce, out);
            }
            (Cold::PinSent { token: sent }, Stage::AwaitsPin { token, .. }) => {
                *token = sent;
                self.wait_for_pin.push(index);
            }
            (Cold::In { user, device, ticket }, stage @ Stage::AwaitsAnswer) => {
                *stage = Stage::Inside;
                self.inside += 1;
                let person = &mut self.people[index];
                (person.user, person.device, person.ticket) = (user, device, ticket);
            }
            (Cold::Ignored, _) => {}
            (Cold::Refused(refusal), stage) => bail!("{refusal} (at {stage:?})"),
            (answer, stage) => bail!("{answer:?} at {stage:?}"),
        }
        Ok(())
    }

    /// Proves the PINs that have come.
    fn prove(&mut self, net: &mut Net) -> Result<()> {
        let mut waiting = Vec::new();
        for index in std::mem::take(&mut self.wait_for_pin) {
            let person = &self.people[index];
            let Stage::AwaitsPin { nonce, token } = &self.stages[index] else { continue };
            let Some(pin) = self.pins.take(person.alias.as_str()) else {
                waiting.push(index);
                continue;
            };
            net.send(self.first_slot + index, &proof(person, nonce, token, pin))?;
            self.stages[index] = Stage::AwaitsAnswer;
        }
        self.wait_for_pin = waiting;
        Ok(())
    }
}

impl Traffic for Arrival<'_> {
    fn frame(&mut self, at: At, frame: &Frame<'_>, out: &mut Vec<u8>) -> Result<()> {
        match frame {
            Frame::Ping => put_pong(out),
            Frame::Other(content) => {
                let answer = cold::read(content)?;
                if let Some(index) = at.slot.checked_sub(self.first_slot)
                    && index < self.people.len()
                {
                    self.answered(index, answer, out)?;
                }
            }
            Frame::Accepted { .. }
            | Frame::Message { .. }
            | Frame::Receipt { .. }
            | Frame::Entry { .. }
            | Frame::CaughtUp => {}
        }
        Ok(())
    }

    fn batch(&mut self, _at: At, _out: &mut Vec<u8>) -> Result<()> {
        Ok(())
    }

    fn round(&mut self, net: &mut Net) -> Result<Next> {
        self.prove(net)?;
        while self.begun < self.people.len() && self.begun - self.inside < self.parallel {
            net.open(self.first_slot + self.begun)?;
            self.stages[self.begun] = Stage::AwaitsWelcome;
            self.begun += 1;
        }
        if self.inside == self.people.len() {
            return Ok(Next::Finished);
        }
        Ok(Next::Within(if self.wait_for_pin.is_empty() { IDLE_WAIT } else { PIN_WAIT }))
    }
}

/// The request that resumes the person's session.
pub(crate) fn resume(person: &Person) -> Resume {
    Resume { ticket: person.ticket.clone(), acknowledged: 0, away: false }
}

/// The frame that proves a PIN and a key.
fn proof(person: &Person, nonce: &[u8], token: &Bytes, pin: String) -> Vec<u8> {
    let bytes = signed::register(nonce, &person.alias);
    let prove = RegisterProve {
        alias: person.alias.as_str().to_owned(),
        pin,
        device_key: Bytes::copy_from_slice(person.key.public_key().as_ref()),
        signature: Bytes::copy_from_slice(person.key.sign(&bytes).as_ref()),
        device_name: "natter-load".into(),
        token: token.clone(),
        ..RegisterProve::default()
    };
    let mut out = Vec::new();
    cold::put(&mut out, 2, Kind::RegisterProve(prove.into()));
    out
}
