//! Before the login: what a stranger may ask, and how a connection gets its user.

use std::net::IpAddr;

use actors::connection::{Ending, Refusal};
use actors::user::{self, Admission, Attach, Login};
use proto::Code;
use proto::limits::FRAME_BYTES_MAX;
use proto::wire::{self, ClientFrame, client_frame::Kind as Ask, server_frame::Kind};
use tracing::debug;

use super::{Over, Socket, Standing, now};
use crate::client::request_rates;

impl Socket {
    /// A frame of someone who is not logged in.
    pub(super) async fn stranger(&mut self, frame: ClientFrame) -> Result<(), Over> {
        if let Standing::Stranger { frames, .. } = &mut self.standing {
            *frames += 1;
            if *frames > self.limits.strangers.frames {
                return Err(Over::Ended(Ending::Told(Code::NotLoggedIn)));
            }
        }
        let id = frame.id;
        let upkeep = matches!(frame.kind, Some(Ask::Ping(_) | Ask::Pong(_)));
        if id == 0 && !upkeep {
            return Ok(()); // A request without an id could not be answered.
        }
        if !upkeep {
            self.connection.remember(ClientFrame { id, kind: None });
        }
        let context = &self.reception.context;
        let address = self.peer.address.ip();
        if let Err(too_fast) = request_rates::take_try(context, address, frame.kind.as_ref()) {
            self.connection.refuse(id, too_fast);
            return Ok(());
        }
        let admitted = match frame.kind {
            Some(Ask::Ping(_)) => {
                self.connection.say(Kind::Pong(wire::Pong {}));
                return Ok(());
            }
            Some(Ask::Pong(_)) => return Ok(()),
            Some(Ask::RegisterStart(start)) => {
                self.register_start(id, &start.alias).await;
                return Ok(());
            }
            Some(Ask::RegisterProve(prove)) => {
                self.reception.registration.prove(context, address, &self.nonce, *prove).await
            }
            Some(Ask::RequestLink(request)) => {
                let asked = user::request_link(context, &self.nonce, *request).await;
                let Some(admitted) = asked.transpose() else {
                    self.connection.answer(id, Kind::Done(wire::Done {}));
                    return Ok(());
                };
                admitted
            }
            Some(Ask::Login(login)) => {
                user::login(context, &self.nonce, &login).await.map_err(Refusal::from)
            }
            Some(Ask::Resume(resume)) => user::resume(context, &resume).map_err(Refusal::from),
            None => Err(Code::NotSupported.into()),
            Some(_) => Err(Code::NotLoggedIn.into()),
        };
        self.open(id, admitted).await
    }

    /// Opens the session of someone who is who they say, or refuses them.
    async fn open(&mut self, id: u64, admitted: Result<Admission, Refusal>) -> Result<(), Over> {
        let context = &self.reception.context;
        if let Ok(Admission { user, registered: false, .. }) = admitted
            && let Err(too_fast) = request_rates::take_login(context, user)
        {
            self.connection.refuse(id, too_fast);
            return Ok(());
        }
        let opened = match admitted {
            Ok(admission) => user::open_session(context, admission).await.map_err(Refusal::from),
            Err(refusal) => Err(refusal),
        };
        match opened {
            Ok(admission) => {
                self.admit(id, admission)?;
            }
            Err(refusal) => {
                debug!(code = refusal.code.name(), "stranger refused");
                self.connection.refuse(id, refusal);
            }
        }
        Ok(())
    }

    async fn register_start(&mut self, id: u64, alias: &str) {
        let address: IpAddr = self.peer.address.ip();
        let asked = self.reception.registration.ask(&self.reception.context, address, alias).await;
        match asked {
            Ok(sent) => {
                self.peer.permit.wait_for_pin();
                // Not until the PIN is there: who waits for a person proves it on a new connection.
                let patience = now() + self.limits.times.login;
                if let Standing::Stranger { deadline, asked, .. } = &mut self.standing
                    && !std::mem::replace(asked, true)
                {
                    *deadline = patience;
                }
                self.connection.answer(id, Kind::PinSent(sent));
            }
            Err(refusal) => self.connection.refuse(id, refusal),
        }
    }

    fn admit(&mut self, id: u64, admission: Admission) -> Result<(), Over> {
        let Admission { user, next, away, registered, .. } = admission;
        let login = Login { id, ticket: next, away, registered };
        if !self.peer.permit.log_in() {
            return Err(Over::Gone);
        }
        self.transport.set_frame_bytes_max(FRAME_BYTES_MAX);
        self.standing = Standing::Attached { user, login: login.clone(), admission };
        let attach = Attach {
            device: admission.device,
            connection: self.connection.clone(),
            acknowledged: admission.acknowledged,
            login: Some(login),
        };
        self.reception.context.users.attach(&self.reception.context, user, attach);
        Ok(())
    }
}
