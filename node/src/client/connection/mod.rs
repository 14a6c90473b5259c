//! A client's connection: one task that reads its frames, hands them to the user's actor and writes
//! what is queued for it. Run by the listeners' task group; it outlives the user actor.
//!
//! ```text
//!   Welcome -> (RegisterStart, RegisterProve | Login | Resume) -> attached -> GoAway, closed
//! ```
//!
//! # Invariants
//! 1. A stranger is bounded in time, frames and bytes.
//! 2. While [`UNANSWERED_MAX`] requests wait for their answer nothing more is read: the client's own
//!    socket holds it back.
//! 3. Between frames no buffer is held. What a connection seldom needs is boxed, for its task keeps room
//!    for the largest thing that it ever waits for.

mod opening;

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use actors::connection::{Connection, Drained, Ending, Refusal, refusal};
use actors::rates::TooFast;
use actors::user::{Admission, Attach, Login};
use bytes::BytesMut;
use proto::limits::{
    FRAME_BYTES_MAX, FRAME_BYTES_MAX_BEFORE_LOGIN, NONCE_BYTES, READ_IDS_MAX, UNANSWERED_MAX,
};
use proto::wire::{self, ClientFrame, ServerFrame, client_frame::Kind as Ask, server_frame::Kind};
use proto::{Code, Seq, UserId, frame};
use tokio::time::{Instant, sleep, timeout};

use crate::client::client_limits::ClientLimits;
use crate::client::reception::Reception;
use crate::client::request_rates;
use crate::listener::{Peer, ReadNow, Transport, source_of};

/// Bytes read at once from one client before others have their turn.
const READ_BYTES: usize = 64 * 1024;

/// Longest time for one frame, in heartbeats: by default a little more than two minutes, in which a very
/// slow line carries the longest frame.
const FRAME_HEARTBEATS: u32 = 3;

/// Pause for a client whose actor does not keep up with it.
const BUSY: Duration = Duration::from_millis(5);

/// What clients read in `Welcome.server`.
const SERVER: &str = concat!("natter ", env!("CARGO_PKG_VERSION"));

/// Why a connection is over.
enum Over {
    /// The client hung up or the socket failed.
    Gone,
    /// The node ends it.
    Ended(Ending),
    /// The client broke the rules of frames; why, for developers.
    Broken(Box<Refusal>),
}

enum Standing {
    Stranger { frames: u32, bytes: u64, deadline: Instant, asked: bool },
    Attached { user: UserId, login: Login, admission: Admission },
}

struct Socket {
    reception: Arc<Reception>,
    limits: Arc<ClientLimits>,
    transport: Transport,
    peer: Peer,
    connection: Arc<Connection>,
    nonce: [u8; NONCE_BYTES],
    buffer: BytesMut,
    standing: Standing,
    /// Bytes may wait in the socket.
    readable: bool,
    heard: Instant,
    asked: bool,
    /// A `Ping` was not answered yet.
    pong_due: bool,
    /// Since when a frame waits for its rest.
    unfinished: Option<Instant>,
}

/// Serves one client until either side ends it. No `async fn`, which would keep room for what it was given as
/// long as the client is there.
pub fn serve(
    reception: Arc<Reception>,
    transport: Transport,
    peer: Peer,
) -> impl Future<Output = ()> + Send {
    let mut nonce = [0; NONCE_BYTES];
    reception.context.secrets.fill(&mut nonce);
    let now = now();
    let limits = reception.limits();
    let (deadline, bytes) = (now + limits.times.login, transport.opening_bytes());
    let source = source_of(peer.address.ip());
    let socket = Box::new(Socket {
        reception,
        limits,
        transport,
        peer,
        connection: Connection::new(source),
        nonce,
        buffer: BytesMut::new(),
        standing: Standing::Stranger { frames: 0, bytes, deadline, asked: false },
        readable: true,
        heard: now,
        asked: false,
        pong_due: false,
        unfinished: None,
    });
    socket.serve()
}

impl Socket {
    async fn serve(mut self: Box<Self>) {
        self.welcome();
        let over = self.run().await;
        self.leave();
        match over {
            Over::Gone => {}
            Over::Ended(ending) => Box::pin(self.goodbye(ending, String::new())).await,
            Over::Broken(refusal) => {
                let Refusal { code, text, .. } = *refusal;
                Box::pin(self.goodbye(Ending::Told(code), text)).await;
            }
        }
    }

    async fn run(&mut self) -> Over {
        loop {
            match self.turn().await {
                Ok(()) => {}
                Err(over) => return over,
            }
        }
    }

    /// Writes what is queued, handles what has come, waits for more.
    async fn turn(&mut self) -> Result<(), Over> {
        let Drained { attach_due, ending, more } = self.write_queued().await?;
        if attach_due {
            self.attach_again();
        }
        if more {
            return Ok(());
        }
        if let Some(ending) = ending {
            return Err(Over::Ended(ending));
        }
        let full = self.connection.is_full();
        if !full && (self.readable || !self.buffer.is_empty()) && self.read().await? {
            // A client that never pauses must not keep a thread for itself.
            tokio::task::consume_budget().await;
            return Ok(());
        }
        let wake_at = self.wake_at();
        tokio::select! {
            () = self.connection.woken() => {}
            readable = readable(&self.transport, full) => {
                readable?;
                self.readable = true;
            }
            () = tokio::time::sleep_until(wake_at) => self.silence()?,
            over = self.stranger_must_go() => return Err(over),
        }
        Ok(())
    }

    /// Returns when this is a stranger's and must end. Boxed, for most connections never need it.
    async fn stranger_must_go(&self) -> Over {
        match self.standing {
            Standing::Stranger { .. } => Box::pin(self.must_go()).await,
            Standing::Attached { .. } => pending().await,
        }
    }

    async fn must_go(&self) -> Over {
        tokio::select! {
            () = self.peer.permit.evicted() => Over::Gone,
            () = self.reception.closing.wait() => Over::Ended(Ending::Told(Code::GoingAway)),
        }
    }

    async fn write_queued(&mut self) -> Result<Drained, Over> {
        let mut out = Vec::new();
        let drained = self.connection.drain(&mut out);
        if !out.is_empty() {
            self.write(&out).await?;
        }
        Ok(drained)
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Over> {
        match timeout(self.limits.times.write, self.transport.write(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Over::Gone),
        }
    }

    /// Handles whole frames that wait, then reads once. True if something was done.
    async fn read(&mut self) -> Result<bool, Over> {
        let mut done = self.handle_buffered().await?;
        if self.connection.is_full() {
            return Ok(done);
        }
        match self.transport.read_now(&mut self.buffer, READ_BYTES) {
            Ok(ReadNow::Bytes(bytes)) => {
                self.heard = now();
                self.asked = false;
                self.count_bytes(bytes as u64)?;
                for _ in 0..self.transport.take_idle_messages() {
                    self.count_needless()?;
                }
                let whole = self.handle_buffered().await?;
                self.note_unfinished(whole);
                done |= whole;
            }
            Ok(ReadNow::WouldBlock) => self.readable = false,
            Ok(ReadNow::Broken(refusal)) => return Err(Over::Broken(Box::new(refusal))),
            Ok(ReadNow::Farewell) => return Err(Over::Ended(Ending::Quiet)),
            Ok(ReadNow::Closed) | Err(_) => return Err(Over::Gone),
        }
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
        Ok(done)
    }

    /// Notes whether a frame waits for its rest. `whole`: another was whole meanwhile.
    fn note_unfinished(&mut self, whole: bool) {
        let waits = !self.buffer.is_empty() || self.transport.holds_part();
        // What is not read because the client has enough unanswered does not count against it.
        self.unfinished = (waits && !self.connection.is_full())
            .then(|| self.unfinished.filter(|_| !whole).unwrap_or(self.heard));
    }

    fn count_bytes(&mut self, more: u64) -> Result<(), Over> {
        if let Standing::Stranger { bytes, .. } = &mut self.standing {
            *bytes += more;
            if *bytes > self.limits.strangers.bytes {
                return Err(Over::Ended(Ending::Told(Code::NotLoggedIn)));
            }
        }
        Ok(())
    }

    async fn handle_buffered(&mut self) -> Result<bool, Over> {
        let mut done = false;
        while !self.buffer.is_empty() && !self.connection.is_full() {
            let limit = match self.standing {
                Standing::Stranger { .. } => FRAME_BYTES_MAX_BEFORE_LOGIN,
                Standing::Attached { .. } => FRAME_BYTES_MAX,
            };
            let decoded = frame::decode_request(&mut self.buffer, limit);
            let Some(frame) = decoded.map_err(|error| {
                Over::Broken(Box::new(Refusal::saying(error.code(), error.to_string())))
            })?
            else {
                break;
            };
            done = true;
            match &self.standing {
                Standing::Attached { user, .. } => {
                    let user = *user;
                    if !self.pass_on(user, frame)? {
                        sleep(BUSY).await;
                        break;
                    }
                }
                // Boxed: a login takes kilobytes, which the connection does not keep.
                Standing::Stranger { .. } => Box::pin(self.stranger(frame)).await?,
            }
        }
        Ok(done)
    }

    /// Counts what asks for nothing and says nothing new: it has no id, so only the end of the connection can
    /// refuse it.
    fn count_needless(&self) -> Result<(), Over> {
        let Standing::Attached { user, .. } = self.standing else { return Ok(()) };
        request_rates::take_needless(&self.reception.context, user).map_err(
            |TooFast { after_ms }| Over::Ended(Ending::ComeBack { code: Code::TooFast, after_ms }),
        )
    }

    /// False if the user's actor has more to do than is good.
    fn pass_on(&mut self, user: UserId, frame: ClientFrame) -> Result<bool, Over> {
        let context = &self.reception.context;
        let (users, ask) = (&context.users, frame.kind.as_ref());
        if let Err(too_fast) = request_rates::take(context, user, ask) {
            let answered = frame.id != 0 && !matches!(ask, Some(Ask::Signal(_) | Ask::Ping(_)));
            if answered {
                self.connection.remember(ClientFrame { id: frame.id, kind: None });
                self.connection.refuse(frame.id, too_fast);
            }
            return Ok(true);
        }
        match &frame.kind {
            Some(Ask::Ping(_)) => self.connection.say(Kind::Pong(wire::Pong {})),
            Some(Ask::Pong(_)) if std::mem::take(&mut self.pong_due) => {}
            Some(Ask::Pong(_)) => self.count_needless()?,
            Some(Ask::Ack(ack)) => {
                if !self.connection.acknowledge(Seq(ack.seq)) {
                    self.count_needless()?;
                }
                return Ok(users.frame(user, self.connection.id(), frame));
            }
            Some(Ask::Signal(_)) => return Ok(users.frame(user, self.connection.id(), frame)),
            // A request without an id could not be answered.
            _ if frame.id == 0 => {}
            None => {
                let id = frame.id;
                self.connection.remember(frame);
                self.connection.refuse(id, Code::NotSupported);
            }
            // A frame full of ids is not kept for the user's actor to refuse.
            Some(Ask::MarkRead(mark)) if mark.send_ids.len() > READ_IDS_MAX => {
                let id = frame.id;
                self.connection.remember(ClientFrame { id, kind: None });
                let rule = format!("1 to {READ_IDS_MAX} of them");
                self.connection.refuse(id, Refusal::field("send_ids", rule));
            }
            _ => {
                self.connection.remember(frame.clone());
                return Ok(users.frame(user, self.connection.id(), frame));
            }
        }
        Ok(true)
    }

    /// The user's actor is a new one.
    fn attach_again(&self) {
        let Standing::Attached { user, login, admission } = &self.standing else { return };
        let attach = Attach {
            device: admission.device,
            connection: self.connection.clone(),
            acknowledged: admission.acknowledged,
            login: self.connection.is_opening().then(|| login.clone()),
        };
        self.reception.context.users.attach(&self.reception.context, *user, attach);
    }

    fn welcome(&self) {
        let times = &self.limits.times;
        self.connection.say(Kind::Welcome(wire::Welcome {
            nonce: self.nonce.to_vec().into(),
            server_time_ms: self.reception.context.clock.now_ms(),
            frame_bytes_max: u32::try_from(FRAME_BYTES_MAX).unwrap_or(u32::MAX),
            unanswered_max: u32::try_from(UNANSWERED_MAX).unwrap_or(u32::MAX),
            heartbeat_s: u32::try_from(times.heartbeat.as_secs().max(1)).unwrap_or(u32::MAX),
            server: SERVER.to_owned(),
        }));
    }

    /// When to look at this connection though nothing has happened.
    fn wake_at(&self) -> Instant {
        let heartbeat = self.limits.times.heartbeat;
        let silence_ends = match self.standing {
            Standing::Stranger { deadline, .. } => deadline,
            Standing::Attached { .. } if self.asked => self.heard + heartbeat + heartbeat / 2,
            Standing::Attached { .. } => self.heard + heartbeat,
        };
        self.frame_deadline().map_or(silence_ends, |deadline| deadline.min(silence_ends))
    }

    /// When the frame that waits for its rest must be whole.
    fn frame_deadline(&self) -> Option<Instant> {
        let limit = self.limits.times.heartbeat * FRAME_HEARTBEATS;
        self.unfinished.map(|since| since + limit)
    }

    /// The time has come that [`Self::wake_at`] named.
    fn silence(&mut self) -> Result<(), Over> {
        let is_late = self.frame_deadline().is_some_and(|deadline| deadline <= now());
        if is_late || self.asked || matches!(self.standing, Standing::Stranger { .. }) {
            return Err(Over::Ended(Ending::Told(Code::TimedOut)));
        }
        (self.asked, self.pong_due) = (true, true);
        self.connection.say(Kind::Ping(wire::Ping {}));
        Ok(())
    }

    fn leave(&self) {
        if let Standing::Attached { user, admission, .. } = &self.standing {
            let (device, id) = (admission.device, self.connection.id());
            self.reception.context.users.detach(*user, device, id);
        }
    }

    /// Where else clients are served that speak like this one.
    fn elsewhere(&self) -> Vec<String> {
        let web = self.transport.is_websocket();
        let peers = self.reception.peers.up().into_iter();
        let addresses =
            peers.map(|peer| if web { peer.websocket_address } else { peer.client_address });
        addresses.filter(|address| !address.is_empty()).collect()
    }

    /// Says why, if there is something to say, and closes. `text` is for developers.
    async fn goodbye(&mut self, ending: Ending, text: String) {
        let mut out = Vec::new();
        self.connection.drain(&mut out);
        let told = match ending {
            Ending::Quiet => None,
            Ending::Told(code) => Some((code, refusal(code).retry_after_ms)),
            Ending::ComeBack { code, after_ms } => Some((code, after_ms)),
        };
        if let Some((code, after_ms)) = told {
            let addresses = if code == Code::GoingAway { self.elsewhere() } else { Vec::new() };
            let code = code.number();
            let kind = Kind::GoAway(wire::GoAway { code, after_ms, addresses, text });
            frame::encode(&ServerFrame { id: 0, kind: Some(kind) }, &mut out);
        }
        if self.write(&out).await.is_ok() {
            self.transport.close().await;
        }
    }
}

async fn readable(transport: &Transport, full: bool) -> Result<(), Over> {
    if full {
        return pending().await;
    }
    transport.readable().await.map_err(|_| Over::Gone)
}

fn now() -> Instant {
    Instant::now()
}
