//! What comes before a node runs, settings and limits of the process, and after it: the exit status.
//!
//! Run by the program `natter`, and by test programs that add handlers to the same node.
//!
//! **Invariant:** whatever stops the start is told on standard error in words that name the cure,
//! and nothing was changed on disk before the settings were found good.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use rustix::fs::Mode;
use rustix::process::umask;

use crate::boot::{Handlers, Start};
use crate::cli::Serve;
use crate::config::{LogFormat, NodeConfig};
use crate::observe::output;
use crate::{admin, boot, clock, files, manifest, tls};

/// How long the end of the process waits until standard error has taken what was said.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Runs a node until it is told to stop, or does what `serve` asks for instead. If it ends with an error, says why
/// in the form of its log, with the cure. Status 0 if all went well, 1 if not.
pub fn run(serve: &Serve, handlers: Handlers) -> ExitCode {
    let Err(error) = run_to_end(serve, handlers) else { return ExitCode::SUCCESS };
    let is_for_people = serve.check || serve.print_config;
    if is_for_people || NodeConfig::log_format(serve.config.as_deref()) == LogFormat::Text {
        tell(format_args!("{error:#}"));
    } else {
        let fields = [("error", format!("{error:#}").into())];
        output::stderr().write(&output::json_line("ERROR", "the node ends", &fields));
        output::stderr().flush(LAST_WORDS);
    }
    ExitCode::FAILURE
}

fn run_to_end(serve: &Serve, handlers: Handlers) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    if serve.print_config {
        return Ok(out.write_all(NodeConfig::print_defaults().as_bytes())?);
    }
    let config = NodeConfig::load(serve.config.as_deref(), serve.data_dir.as_deref())?;
    let warnings = config.readable_secrets(serve.config.as_deref());
    if serve.check {
        for warning in &warnings {
            tell(format_args!("{warning}"));
        }
        check_files(&config)?;
        return Ok(writeln!(out, "the settings are good")?);
    }
    // Whatever this process writes is its user's alone.
    umask(Mode::RWXG | Mode::RWXO);
    tls::install_provider();
    let start = Start { config, file: serve.config.clone(), warnings, files: files::raise() };
    let runtime = workers(start.config.node.worker_threads).enable_all().build();
    let runtime = runtime.context("the async runtime cannot start")?;
    let ended = runtime.block_on(boot::run(start, handlers));
    // What still waits for a disk that takes nothing must not hold up the end.
    runtime.shutdown_timeout(LAST_WORDS);
    output::stderr().flush(LAST_WORDS);
    ended
}

/// Reads the files that a start needs beside the settings, and writes none.
fn check_files(config: &NodeConfig) -> anyhow::Result<()> {
    let dir = Path::new(&config.node.data_dir);
    files::check(config.limits.connections, files::most())?;
    manifest::check(dir, !config.cluster.cookie.is_empty())?;
    config.cluster.find_cookie(dir, admin::joins(dir, &config.cluster.seeds))?;
    Ok(tls::Certificates::check(&config.tls, dir, Some(clock::now_ms() / 1000))?)
}

/// A runtime of `threads`; 0: one for each core.
fn workers(threads: u32) -> tokio::runtime::Builder {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Ok(threads @ 1..) = usize::try_from(threads) {
        builder.worker_threads(threads);
    }
    builder
}

/// Says something on standard error before or after there is a log. If nobody reads it, nobody is told.
pub fn tell(what: std::fmt::Arguments<'_>) {
    output::stderr().write(format!("natter: {what}\n").as_bytes());
    output::stderr().flush(LAST_WORDS);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// What `--check` says of these settings, with `DATA` and `DIR` filled in.
    fn check(folder: &Path, settings: &str) -> Result<(), String> {
        let file = folder.join("node.toml");
        let settings = settings.replace("DIR", folder.to_str().unwrap());
        fs::write(&file, settings).unwrap();
        let data_dir = Some(folder.join("data"));
        let serve = Serve { config: Some(file), data_dir, check: true, print_config: false };
        run_to_end(&serve, Vec::new()).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn check_reads_the_files_that_a_start_reads_and_names_what_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        fs::write(folder.join("bad.pem"), "no certificate").unwrap();
        for (settings, parts) in [
            (
                "[tls]\ncertificate = \"DIR/no.pem\"\nkey = \"DIR/no.pem\"",
                ["tls.certificate", "no.pem"],
            ),
            (
                "[tls]\ncertificate = \"DIR/bad.pem\"\nkey = \"DIR/bad.pem\"",
                ["tls.certificate", "bad.pem"],
            ),
            ("[tls]\nnames = [\"\u{e9}\"]", ["tls.names", "\u{e9}"]),
            ("[cluster]\nseeds = [\"a:1\"]", ["data/cookie", "copy"]),
            ("[cluster]\ncookie_file = \"DIR/no\"", ["cluster.cookie_file", "DIR/no"]),
        ] {
            let said = check(folder, settings).unwrap_err();
            for part in parts {
                let part = part.replace("DIR", folder.to_str().unwrap());
                assert!(said.contains(&part), "{said:?} lacks {part:?}");
            }
        }
        let data = folder.join("data");
        fs::create_dir_all(data.join("tls")).unwrap();
        fs::write(data.join("cookie"), "short").unwrap();
        assert!(check(folder, "").unwrap_err().contains("at least 32"));
        fs::write(data.join("cookie"), "x".repeat(32)).unwrap();
        for file in ["tls/cert.pem", "tls/key.pem", "tls/ca.pem"] {
            fs::write(data.join(file), "damaged").unwrap();
        }
        assert!(check(folder, "").unwrap_err().contains("tls/cert.pem"));
    }

    #[test]
    fn check_refuses_a_certificate_that_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let key = rcgen::KeyPair::generate().unwrap();
        fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
        let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        let mut said = |year| {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            let certificate = params.self_signed(&key).unwrap();
            fs::write(folder.join("cert.pem"), certificate.pem()).unwrap();
            check(folder, "[tls]\ncertificate = \"DIR/cert.pem\"\nkey = \"DIR/key.pem\"")
        };
        said(2999).unwrap();
        let error = said(2021).unwrap_err();
        for part in ["tls.certificate", "cert.pem", "ended 2021-01-01T00:00:00Z", "renew"] {
            assert!(error.contains(part), "{error:?} lacks {part:?}");
        }
    }

    #[test]
    fn check_of_good_settings_writes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        check(folder.path(), "").unwrap();
        let files: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert_eq!(files, ["node.toml"]);
    }
}
