//! The first run: who are you, where is the node, prove it.

use crate::{
    ChatArgs,
    home::{self, Profile, Server},
};
use anyhow::{Context, bail};
use natter_sdk::{
    Alias, ClientOptions, Code, ConnectError, DeviceKey, FileStore, Identity, LinkCode, PinSent,
    Proof, register_prove, register_start, remedy, request_link,
};
use std::{
    io::{self, BufRead, IsTerminal, Write},
    path::Path,
    time::Duration,
};

/// How long a new device waits to be linked.
const LINK_PATIENCE: Duration = Duration::from_mins(10);

/// Where a node on this machine listens.
const SERVER_DEFAULT: &str = "127.0.0.1:7400";

/// The name of this device, for the other devices of its person.
const DEVICE_NAME: &str = "natter chat";

/// Everything a client needs.
pub(crate) struct Ready {
    pub(crate) profile: Profile,
    pub(crate) alias: Alias,
    pub(crate) options: ClientOptions,
    pub(crate) identity: Identity,
    pub(crate) store: FileStore,
}

/// Finds or makes an identity. `None`: there is nothing more to do in this run.
pub(crate) async fn prepare(args: &ChatArgs) -> anyhow::Result<Option<Ready>> {
    let home = home::home(args.home.as_deref())?;
    let alias = who(args, &home)?;
    let profile = Profile::of(&home, &alias);
    let server = server(args, &profile, &alias)?;
    let options = server.options()?;
    let mut store = FileStore::open(profile.dir())?;
    if args.register_again {
        // The store was opened before: no other process uses these files.
        profile.forget_identity()?;
        drop(store);
        store = FileStore::open(profile.dir())?;
    }
    let identity = if let Some(identity) = store.identity()? {
        refuse_what_is_for_a_registration(args, &alias)?;
        identity
    } else {
        let new = if args.link {
            Some(link(&options, &alias, &store).await?)
        } else {
            register(args, &options, &alias, (&store, &profile)).await?
        };
        let Some(new) = new else { return Ok(None) };
        if let Some(aside) = profile.set_history_aside()? {
            tell(&format!("The earlier history is kept in {}.\n", aside.display()))?;
        }
        new
    };
    store.save_identity(&identity)?;
    profile.save_server(&server)?;
    Ok(Some(Ready { profile, alias, options, identity, store }))
}

/// What a device that is registered would ignore, it refuses.
fn refuse_what_is_for_a_registration(args: &ChatArgs, alias: &Alias) -> anyhow::Result<()> {
    let flags =
        [(args.pin.is_some(), "--pin"), (args.request_pin, "--request-pin"), (args.link, "--link")];
    let Some((_, flag)) = flags.into_iter().find(|(given, _)| *given) else { return Ok(()) };
    bail!(
        "{alias} is registered on this device, so there is nothing to do for {flag}. Leave it out to chat, or \
         add --register-again to start anew"
    )
}

fn who(args: &ChatArgs, home: &Path) -> anyhow::Result<Alias> {
    if let Some(alias) = &args.alias {
        return Alias::parse(alias).with_context(|| format!("--as {alias}"));
    }
    let known: Vec<String> = Profile::all(home)?.into_iter().map(|server| server.alias).collect();
    match known.as_slice() {
        [only] => Ok(Alias::parse(only)?),
        [] => loop {
            let line = ask("Your name here (ada, ada@example.org or +4915112345678): ")?;
            match Alias::parse(&line) {
                Ok(alias) => return Ok(alias),
                Err(error) => tell(&format!("{error}\n"))?,
            }
        },
        several => bail!("several people use {}: --as {}", home.display(), several.join(" | ")),
    }
}

/// What was given now, over what is remembered.
fn server(args: &ChatArgs, profile: &Profile, alias: &Alias) -> anyhow::Result<Server> {
    let saved = profile.server()?;
    let address = args.server.clone().or_else(|| saved.as_ref().map(|s| s.address.clone()));
    let ca = match (&args.ca, args.plain) {
        (Some(file), _) => {
            let file = std::path::absolute(file).context("--ca")?;
            Some(file)
        }
        (None, true) => None,
        (None, false) => match &saved {
            Some(saved) => saved.ca.clone(),
            None => bail!(
                "give --ca FILE, the certificate to trust: tls/ca.pem in the data directory of a node of your own \
                 (or --plain, without TLS)"
            ),
        },
    };
    let certificate_name = args
        .server_name
        .clone()
        .or_else(|| saved.as_ref().and_then(|s| s.certificate_name.clone()));
    let address = address.unwrap_or_else(|| SERVER_DEFAULT.to_owned());
    Ok(Server { alias: alias.to_string(), address, certificate_name, ca })
}

async fn register(
    args: &ChatArgs,
    options: &ClientOptions,
    alias: &Alias,
    (store, profile): (&FileStore, &Profile),
) -> anyhow::Result<Option<Identity>> {
    let key = store.device_key()?;
    let lock = args.registration_lock.clone().unwrap_or_default();
    if let Some(pin) = &args.pin {
        may_be_pin(pin, None).map_err(anyhow::Error::msg).context("--pin")?;
        let token = profile.pin_token()?;
        let token = token.context("no PIN was asked for here: call with --request-pin first")?;
        let proof = Proof { pin, token: &token, lock: &lock };
        let identity = register_prove(options, alias, proof, key, DEVICE_NAME).await;
        return identity.map(Some).with_context(|| format!("registering {alias}"));
    }
    let sent = ask_for_pin(options, alias, profile).await?;
    if args.request_pin {
        return Ok(None);
    }
    if !io::stdin().is_terminal() {
        bail!("a PIN was sent to {alias}: call again with --pin PIN");
    }
    tell(&format!(
        "If {alias} has an account on another device, entering the PIN here ends that\n\
         account, unless you know its registration lock.\n\
         To keep it, press Ctrl-C and add --link.\n"
    ))?;
    prove(options, alias, (profile, sent), (key, lock)).await.map(Some)
}

/// Asks for a PIN and says so.
async fn ask_for_pin(
    options: &ClientOptions,
    alias: &Alias,
    profile: &Profile,
) -> anyhow::Result<PinSent> {
    let sent = register_start(options, alias).await;
    let sent =
        sent.map_err(|error| explained(error, &format!("for a PIN for {alias}"), options))?;
    profile.save_pin_token(&sent.token)?;
    let minutes = sent.expires.as_secs().div_ceil(60);
    tell(&format!(
        "A PIN was sent to {alias}: {} digits, good for {minutes} minutes.\n",
        sent.digits
    ))?;
    Ok(sent)
}

/// Asks for the PIN, and for the registration lock if there is one, until they are right.
async fn prove(
    options: &ClientOptions,
    alias: &Alias,
    (profile, mut sent): (&Profile, PinSent),
    (key, mut lock): (DeviceKey, String),
) -> anyhow::Result<Identity> {
    let mut pin = ask_pin(sent.digits)?;
    loop {
        let proof = Proof { pin: &pin, token: &sent.token, lock: &lock };
        match register_prove(options, alias, proof, key.clone(), DEVICE_NAME).await {
            Ok(identity) => return Ok(identity),
            Err(ConnectError::Refused(refusal)) if refusal.code == Code::WrongPin => {
                tell("That PIN is wrong. Look at the newest one.\n")?;
                pin = ask_pin(sent.digits)?;
            }
            Err(ConnectError::Refused(refusal)) if refusal.code == Code::NoPin => {
                tell("That PIN is no longer good: it is too old, or was tried too often.\n")?;
                sent = ask_for_pin(options, alias, profile).await?;
                pin = ask_pin(sent.digits)?;
            }
            Err(ConnectError::Refused(refusal)) if refusal.code == Code::WrongLock => {
                if !lock.is_empty() {
                    tell("That registration lock is wrong.\n")?;
                }
                lock = ask("The account has a registration lock: ")?;
            }
            Err(error) if error.code() == Some(Code::TooFast) && !lock.is_empty() => {
                return Err(error).with_context(|| {
                    format!(
                        "too many wrong registration locks of {alias}; a device that {alias} uses lets this one \
                         in at once: add --link"
                    )
                });
            }
            Err(error) => return Err(error).with_context(|| format!("registering {alias}")),
        }
    }
}

fn ask_pin(digits: u32) -> anyhow::Result<String> {
    loop {
        let pin = ask("PIN: ")?;
        match may_be_pin(&pin, Some(digits)) {
            Ok(()) => return Ok(pin),
            Err(words) => tell(&format!("{words}\n"))?,
        }
    }
}

/// Whether this can be a PIN: what cannot must not use up an attempt. `digits`: how many it has, if known.
///
/// The error is for the person who typed it.
fn may_be_pin(pin: &str, digits: Option<u32>) -> Result<(), String> {
    let pin = pin.trim();
    let is_number = !pin.is_empty() && pin.bytes().all(|byte| byte.is_ascii_digit());
    match digits {
        Some(digits) if !is_number || u32::try_from(pin.len()) != Ok(digits) => {
            Err(format!("The PIN is a number of {digits} digits."))
        }
        None if !is_number => Err("a PIN is a number".to_owned()),
        Some(_) | None => Ok(()),
    }
}

/// A further device of an account: shows its code, and waits until another device has linked it.
async fn link(
    options: &ClientOptions,
    alias: &Alias,
    store: &FileStore,
) -> anyhow::Result<Identity> {
    let key = store.device_key()?;
    let code = LinkCode::of(alias, key.public());
    tell(&format!(
        "In natter chat on a device of {alias}, type:\n\n    /link {code}\n\n\
         This waits for it for ten minutes. Ctrl-C gives up.\n"
    ))?;
    match request_link(options, alias, key, DEVICE_NAME, LINK_PATIENCE).await {
        Err(ConnectError::TimedOut(waited)) if waited == LINK_PATIENCE => {
            bail!("no device of {alias} has linked this one; call again to go on waiting")
        }
        linked => linked
            .map_err(|error| explained(error, &format!("for the devices of {alias}"), options)),
    }
}

/// An error of asking the nodes for something, with what a person can do about it.
fn explained(error: ConnectError, wish: &str, options: &ClientOptions) -> anyhow::Error {
    let nodes = options.addresses.join(" and ");
    let remedy = remedy(&error).map_or_else(String::new, |remedy| format!(" ({remedy})"));
    anyhow::Error::new(error).context(format!("asking {nodes} {wish}{remedy}"))
}

/// Says something on standard error.
pub(crate) fn tell(words: &str) -> anyhow::Result<()> {
    let mut out = io::stderr();
    out.write_all(words.as_bytes())?;
    Ok(out.flush()?)
}

fn ask(question: &str) -> anyhow::Result<String> {
    tell(question)?;
    let mut line = String::new();
    if io::stdin().lock().read_line(&mut line)? == 0 {
        bail!("no answer");
    }
    Ok(line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_pin_uses_up_no_attempt() {
        for wrong in ["", "abc", "12", "1234567", "12345a", "12 456"] {
            assert!(may_be_pin(wrong, Some(6)).is_err(), "{wrong:?}");
        }
        assert_eq!(may_be_pin(" 123456 ", Some(6)), Ok(()));
        assert_eq!(may_be_pin("12345", None), Ok(()));
        assert!(may_be_pin("abc", None).is_err());
    }

    #[test]
    fn a_registered_device_ignores_nothing_that_was_asked_of_it() {
        let ada = Alias::parse("ada").unwrap();
        let refused = |args: &ChatArgs| {
            refuse_what_is_for_a_registration(args, &ada).unwrap_err().to_string()
        };
        let pin = ChatArgs { pin: Some("123456".into()), ..ChatArgs::default() };
        let request = ChatArgs { request_pin: true, ..ChatArgs::default() };
        let link = ChatArgs { link: true, ..ChatArgs::default() };
        for (args, flag) in [(pin, "--pin"), (request, "--request-pin"), (link, "--link")] {
            assert!(refused(&args).contains(flag));
        }
        refuse_what_is_for_a_registration(&ChatArgs::default(), &ada).unwrap();
    }
}
