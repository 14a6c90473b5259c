//! The first run: who are you, where is the node, prove it.

use crate::{
    ChatArgs, command,
    home::{self, Profile, Server},
};
use anyhow::{Context, bail};
use natter_sdk::{
    Alias, ClientOptions, Code, ConnectError, DeviceId, FileStore, Identity, UserId,
    register_prove, register_start,
};
use std::{
    io::{self, BufRead, IsTerminal, Write},
    path::Path,
};

/// Where a node on this machine listens.
const SERVER_DEFAULT: &str = "127.0.0.1:7400";

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
    let store = FileStore::open(profile.dir())?;
    let server = server(args, &profile, &alias)?;
    let options = server.options()?;
    let identity = match store.identity()? {
        Some(identity) => identity,
        None if args.link => link(&store)?,
        None => match register(args, &options, &alias, &store).await? {
            Some(identity) => identity,
            None => return Ok(None),
        },
    };
    store.save_identity(&identity)?;
    profile.save_server(&server)?;
    Ok(Some(Ready { profile, alias, options, identity, store }))
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
            None => bail!("give --ca FILE, the certificate to trust (or --plain, without TLS)"),
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
    store: &FileStore,
) -> anyhow::Result<Option<Identity>> {
    let key = store.device_key()?;
    let device = "natter chat";
    if let Some(pin) = &args.pin {
        let identity = register_prove(options, alias, pin, key, device).await;
        return identity.map(Some).with_context(|| format!("registering {alias}"));
    }
    let sent = register_start(options, alias).await;
    let sent = sent.with_context(|| format!("asking for a PIN for {alias}"))?;
    if args.request_pin {
        return Ok(None);
    }
    if !io::stdin().is_terminal() {
        bail!("a PIN was sent to {alias}: call again with --pin PIN");
    }
    let minutes = sent.expires.as_secs().div_ceil(60);
    loop {
        let question =
            format!("PIN sent to {alias} ({} digits, good for {minutes} min): ", sent.digits);
        let pin = ask(&question)?;
        match register_prove(options, alias, &pin, key.clone(), device).await {
            Ok(identity) => return Ok(Some(identity)),
            Err(ConnectError::Refused(refusal)) if refusal.code == Code::WrongPin => {
                tell("That PIN is wrong.\n")?;
            }
            Err(error) => return Err(error).with_context(|| format!("registering {alias}")),
        }
    }
}

/// A further device of an account: shows its code, and takes the answer.
fn link(store: &FileStore) -> anyhow::Result<Identity> {
    let key = store.device_key()?;
    let code = command::link_code(key.public());
    tell(&format!("On a device that is logged in, type:\n\n    /link {code} NAME\n\n"))?;
    loop {
        let answer = ask("The answer it shows: ")?;
        if let Some((user, device)) = command::parse_join_code(&answer) {
            return Ok(Identity { user: UserId(user), device: DeviceId(device), key });
        }
        tell("It looks like 123456-2.\n")?;
    }
}

fn tell(words: &str) -> anyhow::Result<()> {
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
