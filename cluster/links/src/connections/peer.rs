//! The process `peer`: the one actor that other nodes see. It owns all connections.
//!
//! Greetings reach it through `ractor_cluster`; the listener, the dialer, `ractor_cluster`'s events and
//! the ticker tell it the rest. All decisions are the switchboard's, to which other packets go straight
//! from the connections.
//!
//! **Invariant:** only [`PeerMsg::Greeting`] can come from another node.

use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ractor::message::{BoxedDowncastErr, SerializedMessage};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use ractor_cluster::NodeEventSubscription;
use ractor_cluster::node::NodeServerSessionInformation as Session;

use crate::connections::inlet::Inlet;
use crate::connections::switchboard::{Connected, Switchboard};

/// The process group by which nodes find each other's actor.
pub(crate) const GROUP: &str = "natter.peer";

/// What the actor is told.
pub(crate) enum PeerMsg {
    /// From a peer: an encoded `cluster.Packet` with its hello.
    Greeting(Vec<u8>),
    /// From listener and dialer: a connection to a node of our cluster.
    Connected(Box<Connected>),
    /// From `ractor_cluster`: both ends of a connection have agreed.
    SessionReady { label: String, session: u64, name: String },
    /// From `ractor_cluster`: a session has ended.
    SessionEnded { label: String },
    /// From the ticker, twice a heartbeat. Set to false when it is done.
    TickDue(Arc<AtomicBool>),
}

impl ractor::Message for PeerMsg {
    fn serializable() -> bool {
        true
    }

    fn serialize(self) -> Result<SerializedMessage, BoxedDowncastErr> {
        match self {
            Self::Greeting(args) => {
                Ok(SerializedMessage::Cast { variant: String::new(), args, metadata: None })
            }
            Self::Connected(_)
            | Self::SessionReady { .. }
            | Self::SessionEnded { .. }
            | Self::TickDue(_) => Err(BoxedDowncastErr),
        }
    }

    fn deserialize(message: SerializedMessage) -> Result<Self, BoxedDowncastErr> {
        match message {
            SerializedMessage::Cast { args, .. } => Ok(Self::Greeting(args)),
            SerializedMessage::Call { .. } | SerializedMessage::CallReply(..) => {
                Err(BoxedDowncastErr)
            }
        }
    }
}

/// The actor.
pub(crate) struct Peer;

/// What it owns.
pub(crate) struct Desk {
    pub(crate) switchboard: Arc<Mutex<Switchboard>>,
    pub(crate) inlet: Inlet,
}

impl Desk {
    fn switchboard(&self) -> MutexGuard<'_, Switchboard> {
        self.switchboard.lock()
    }
}

impl Actor for Peer {
    type Msg = PeerMsg;
    type State = Desk;
    type Arguments = Desk;

    async fn pre_start(
        &self,
        myself: ActorRef<PeerMsg>,
        desk: Desk,
    ) -> Result<Desk, ActorProcessingErr> {
        ractor::pg::join(GROUP.to_owned(), vec![myself.get_cell()]);
        Ok(desk)
    }

    async fn handle(
        &self,
        _myself: ActorRef<PeerMsg>,
        message: PeerMsg,
        desk: &mut Desk,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            PeerMsg::Greeting(bytes) => desk.inlet.packet(bytes.into()),
            PeerMsg::Connected(connected) => desk.switchboard().connected(*connected),
            PeerMsg::SessionReady { label, session, name } => {
                desk.switchboard().ready(&label, session, &name);
            }
            PeerMsg::SessionEnded { label } => desk.switchboard().ended(&label),
            PeerMsg::TickDue(due) => {
                due.store(false, Ordering::Relaxed);
                desk.switchboard().tick();
            }
        }
        Ok(())
    }
}

/// Tells the actor of `ractor_cluster`'s sessions.
pub(crate) struct Events(pub(crate) ActorRef<PeerMsg>);

impl Events {
    fn tell(&self, message: PeerMsg) {
        drop(self.0.cast(message)); // It is gone: so are its connections.
    }
}

impl NodeEventSubscription for Events {
    fn node_session_opened(&self, _session: Session) {}

    fn node_session_disconnected(&self, session: Session) {
        self.tell(PeerMsg::SessionEnded { label: session.peer_addr });
    }

    fn node_session_authenticated(&self, _session: Session) {}

    fn node_session_ready(&self, session: Session) {
        let name = session.peer_name.map(|name| name.name).unwrap_or_default();
        let (label, session) = (session.peer_addr, session.node_id);
        self.tell(PeerMsg::SessionReady { label, session, name });
    }
}
