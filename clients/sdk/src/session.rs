//! One connection, from login to its end: frames in, frames out, timers.

use crate::{
    client::{Accepted, Command},
    driver::{Driver, End, REQUESTS_MAX, answer, is_final, room_for},
    error::{ConnectError, Refusal, RequestError, SendError},
    event::{DisconnectReason, Event, LinkRequest, Presence, Signal},
    inbox::{AckDue, Arrival},
    outbox::{self, Refused},
    transport::Link,
};
use bytes::{Buf, BytesMut};
use proto::{
    Code, DeviceId, Retry, SendId, Seq, UserId, frame,
    wire::{self, ClientFrame, ServerFrame, client_frame, server_frame::Kind},
};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::oneshot,
    time::{Instant, sleep_until},
};
use tracing::debug;

/// Frames are added to what waits to be written up to so many bytes.
const WRITE_BYTES: usize = 64 * 1024;

/// How long answers are waited for after the node said that it goes away.
const LEAVE_WAIT: Duration = Duration::from_secs(2);

/// Silence that is assumed if `Welcome` names none.
const HEARTBEAT_S_DEFAULT: u32 = 60;

/// The running part of one connection.
struct Session {
    frame_limit: usize,
    input: BytesMut,
    output: Output,
    heartbeat: Duration,
    heard_at: Instant,
    pinged: bool,
    leaving: Option<Leaving>,
}

/// What waits to be written.
#[derive(Default)]
struct Output {
    bytes: BytesMut,
    unflushed: bool,
}

/// The node said `GoAway`.
struct Leaving {
    code: Code,
    until: Instant,
    wait: Duration,
    addresses: Vec<String>,
}

impl Driver {
    /// Runs the session until it is over.
    pub(crate) async fn session(&mut self, link: Link) -> End {
        let Link { mut reader, mut writer, buffer, frame_limit, welcome } = link;
        let heartbeat_s = match welcome.heartbeat_s {
            0 => HEARTBEAT_S_DEFAULT,
            told => told,
        };
        let mut session = Session {
            frame_limit,
            input: buffer,
            output: Output::default(),
            heartbeat: Duration::from_secs(u64::from(heartbeat_s)),
            heard_at: Instant::now(),
            pinged: false,
            leaving: None,
        };
        let shared = self.shared.clone();
        loop {
            if let Err(end) = self.step(&mut session) {
                return self.farewell(end, &mut session, &mut writer).await;
            }
            let due = self.next_due(&session);
            let room = self.requests.len() < REQUESTS_MAX;
            tokio::select! {
                read = reader.read_buf(&mut session.input), if self.backlog.is_empty() => match read {
                    Ok(0) => return session.hung_up(DisconnectReason::Closed),
                    Ok(_) => {
                        session.heard_at = Instant::now();
                        session.pinged = false;
                    }
                    Err(error) => return session.hung_up(ConnectError::Io(error).into()),
                },
                written = session.output.write(&mut writer), if session.output.waits() => {
                    if let Err(error) = written {
                        return session.hung_up(ConnectError::Io(error).into());
                    }
                }
                () = room_for(&self.events), if !self.backlog.is_empty() => self.drain(),
                command = self.commands.recv(), if room => {
                    if let Err(end) = self.command(command) {
                        return self.farewell(end, &mut session, &mut writer).await;
                    }
                }
                () = shared.changed.notified() => {}
                () = sleep_until(due) => {}
            }
        }
    }

    /// Everything that can be done without waiting.
    fn step(&mut self, session: &mut Session) -> Result<(), End> {
        while self.backlog.is_empty() {
            let frame = frame::decode(&mut session.input, session.frame_limit)
                .map_err(|error| End::lost(ConnectError::Frame(error).into()))?;
            let Some(frame) = frame else { break };
            self.frame(session, frame)?;
        }
        let now = Instant::now();
        self.fill(session, now);
        let silent = now.saturating_duration_since(session.heard_at);
        // While events wait, the silence is ours.
        if self.backlog.is_empty() && silent >= session.heartbeat.mul_f64(1.5) {
            return Err(End::lost(DisconnectReason::Silent));
        }
        if silent >= session.heartbeat && !session.pinged {
            session.pinged = true;
            session.output.put(0, client_frame::Kind::Ping(wire::Ping {}));
        }
        let idle = self.shared.desk().outbox.unanswered() == 0;
        match session.leaving.take_if(|leaving| idle || leaving.until <= now) {
            Some(leaving) => Err(leaving.end()),
            None => Ok(()),
        }
    }

    /// Puts requests, acknowledgements and sends into the output.
    fn fill(&mut self, session: &mut Session, now: Instant) {
        let output = &mut session.output;
        for kind in self.casts.drain(..) {
            output.put(0, kind);
        }
        for (id, pending) in self.requests.iter_mut().filter(|(_, pending)| !pending.written) {
            output.put(*id, pending.kind.clone());
            pending.written = true;
        }
        let mut desk = self.shared.desk();
        if let AckDue::Now(seq) = desk.inbox.ack_due(now) {
            output.put(0, client_frame::Kind::Ack(wire::Ack { seq: seq.0 }));
            desk.inbox.ack_written(seq, now);
        }
        desk.outbox.release(now);
        while session.leaving.is_none() && output.bytes.len() < WRITE_BYTES {
            let Some((id, send)) = desk.outbox.next() else { break };
            output.put(id, client_frame::Kind::Send(send));
        }
    }

    fn next_due(&self, session: &Session) -> Instant {
        let desk = self.shared.desk();
        let patience = if session.pinged { 1.5 } else { 1.0 };
        let mut due = session.heard_at + session.heartbeat.mul_f64(patience);
        if !self.backlog.is_empty() {
            due = due.max(Instant::now() + session.heartbeat);
        }
        let ack = match desk.inbox.ack_due(Instant::now()) {
            AckDue::Never => None,
            AckDue::At(at) => Some(at),
            AckDue::Now(_) => Some(Instant::now()),
        };
        let leave = session.leaving.as_ref().map(|leaving| leaving.until);
        [ack, desk.outbox.next_due(), leave].into_iter().flatten().fold(due, Instant::min)
    }

    fn command(&mut self, command: Option<Command>) -> Result<(), End> {
        match command {
            Some(Command::Request { kind, repeat, reply }) => {
                self.enqueue(kind, repeat, Some(reply));
            }
            Some(Command::Cast(kind)) => self.casts.push(kind),
            Some(Command::Close { done }) => return Err(End::Closed { done: Some(done) }),
            None => return Err(End::Closed { done: None }),
        }
        Ok(())
    }

    fn frame(&mut self, session: &mut Session, frame: ServerFrame) -> Result<(), End> {
        let id = frame.id;
        match frame.kind {
            Some(Kind::Accepted(accepted)) => self.accepted(id, accepted),
            Some(Kind::Deliver(deliver)) => self.deliver(deliver)?,
            Some(Kind::Signaled(signal)) => self.notify(Event::Signal(Signal {
                from: UserId(signal.from),
                from_device: DeviceId(signal.from_device),
                kind: signal.kind,
                body: signal.body,
            })),
            Some(Kind::Presence(presence)) => self.notify(Event::Presence(Presence {
                user: UserId(presence.user),
                online: presence.online,
                last_seen_ms: presence.last_seen_ms,
            })),
            Some(Kind::LinkRequested(asked)) => self.notify(Event::LinkRequested(LinkRequest {
                key: asked.device_key,
                name: asked.device_name,
            })),
            Some(Kind::CaughtUp(_)) => self.emit(Event::CaughtUp),
            Some(Kind::Ping(_)) => session.output.put(0, client_frame::Kind::Pong(wire::Pong {})),
            Some(Kind::Refused(refused)) => self.refused(id, refused.into())?,
            Some(Kind::GoAway(go_away)) => session.leave(go_away)?,
            Some(kind @ (Kind::Done(_) | Kind::Linked(_) | Kind::Found(_) | Kind::Account(_))) => {
                if let Some(pending) = self.requests.remove(&id) {
                    answer(pending, Ok(kind));
                }
            }
            Some(
                Kind::Pong(_)
                | Kind::Welcome(_)
                | Kind::PinSent(_)
                | Kind::Registered(_)
                | Kind::LoggedIn(_),
            )
            | None => {}
        }
        Ok(())
    }

    fn accepted(&mut self, id: u64, accepted: wire::Accepted) {
        let user = UserId(accepted.user);
        // Each statement takes the lock for itself: `emit` must not run under it.
        let outcome = self.shared.desk().accepted(id, user);
        let user = (user.0 != 0).then_some(user);
        if let outbox::Accepted::Settled { answer } = outcome {
            self.answer_send(id, answer, Ok(Accepted { at_ms: accepted.at_ms, user }));
        }
    }

    fn answer_send(
        &mut self,
        id: u64,
        handle: Option<oneshot::Sender<Result<Accepted, SendError>>>,
        result: Result<Accepted, SendError>,
    ) {
        let unheard = match handle {
            Some(handle) => handle.send(result).err(),
            None => Some(result),
        };
        if let Some(result) = unheard {
            self.emit(Event::Answered { send_id: SendId(id), result });
        }
    }

    fn deliver(&mut self, deliver: wire::Deliver) -> Result<(), End> {
        let arrival = self.shared.desk().inbox.deliver(deliver.seq, deliver.after);
        match arrival {
            Arrival::New => {
                let event = Event::delivered(deliver, &self.shared);
                self.emit(event);
            }
            Arrival::Again => {}
            Arrival::Hole => {
                let seq = Seq(deliver.seq);
                return Err(End::lost(DisconnectReason::Hole { seq }));
            }
        }
        Ok(())
    }

    fn refused(&mut self, id: u64, refusal: Refusal) -> Result<(), End> {
        let code = refusal.code;
        if is_final(code) && (id == 0 || code != Code::BadCredentials) {
            return Err(End::Ended(code));
        }
        if id == 0 {
            let wait = refusal.retry_after;
            let reason = DisconnectReason::Refused(code);
            return Err(End::Lost { reason, wait, addresses: Vec::new() });
        }
        if let Some(pending) = self.requests.remove(&id) {
            answer(pending, Err(RequestError::Refused(refusal)));
            return Ok(());
        }
        let outcome = self.shared.desk().refused(id, &refusal, Instant::now(), rand::random());
        match outcome {
            Refused::Kept { reconnect: true } => {
                debug_assert_ne!(code.retry(), Retry::After, "waiting needs no new connection");
                Err(End::lost(DisconnectReason::Refused(code)))
            }
            Refused::Kept { reconnect: false } | Refused::Unknown => Ok(()),
            Refused::GivenUp { answer } => {
                self.answer_send(id, answer, Err(SendError::Refused(refusal)));
                Ok(())
            }
        }
    }

    /// Writes what is ready before the application's own end; not worth a wait in other cases.
    async fn farewell(
        &mut self,
        end: End,
        session: &mut Session,
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> End {
        if matches!(end, End::Closed { .. }) {
            // A last acknowledgement may be within its pause.
            self.fill(session, Instant::now() + Duration::from_secs(1));
            let bytes = session.output.bytes.split();
            let writing = async {
                writer.write_all(&bytes).await?;
                writer.shutdown().await
            };
            match tokio::time::timeout(LEAVE_WAIT, writing).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "the last frames were not written"),
                Err(_) => debug!("the last frames were not taken"),
            }
        }
        end
    }
}

impl Session {
    fn leave(&mut self, go_away: wire::GoAway) -> Result<(), End> {
        let code = Code::from_number(go_away.code);
        if is_final(code) {
            return Err(End::Ended(code));
        }
        let after = Duration::from_millis(u64::from(go_away.after_ms));
        // A node that goes gives each client a time of its own; other waits are the same for all.
        let spread = if code == Code::GoingAway { 0.0 } else { rand::random::<f64>() };
        self.leaving = Some(Leaving {
            code,
            until: Instant::now() + LEAVE_WAIT,
            wait: after.mul_f64(1.0 + spread),
            addresses: go_away.addresses,
        });
        Ok(())
    }

    /// The connection is gone; if the node had said so before, as it said.
    fn hung_up(&mut self, reason: DisconnectReason) -> End {
        self.leaving.take().map_or_else(|| End::lost(reason), Leaving::end)
    }
}

impl Leaving {
    fn end(self) -> End {
        let reason = DisconnectReason::GoAway(self.code);
        End::Lost { reason, wait: self.wait, addresses: self.addresses }
    }
}

impl Output {
    fn put(&mut self, id: u64, kind: client_frame::Kind) {
        frame::encode(&ClientFrame { id, kind: Some(kind) }, &mut self.bytes);
    }

    fn waits(&self) -> bool {
        self.unflushed || self.bytes.has_remaining()
    }

    /// Writes all there is. What is written is taken off the output, so the wait may be broken off
    /// at any point.
    async fn write(&mut self, writer: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        while self.bytes.has_remaining() {
            if writer.write_buf(&mut self.bytes).await? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.unflushed = true;
        }
        if self.unflushed {
            writer.flush().await?;
            self.unflushed = false;
        }
        Ok(())
    }
}
