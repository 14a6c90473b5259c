//! Secrets in files that others than their owner can read.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::NodeConfig;

/// Bits of a mode that let others than the owner read a file.
const OTHERS_READ: u32 = 0o044;

impl NodeConfig {
    /// For each file of secrets that others can read, a warning that names setting, file and cure.
    /// `file`: the one the settings came from.
    pub fn readable_secrets(&self, file: Option<&Path>) -> Vec<String> {
        let own = file.map(|file| file.to_string_lossy().into_owned()).unwrap_or_default();
        let (webhook, smtp) = (&self.registration.webhook, &self.registration.smtp);
        let secrets = [
            ("cluster.cookie", &self.cluster.cookie, &self.cluster.cookie_file),
            ("registration.webhook.secret", &webhook.secret, &webhook.secret_file),
            ("registration.smtp.password", &smtp.password, &smtp.password_file),
        ];
        let readable = |(key, secret, apart): (&str, &super::Secret, &String)| {
            let file = if apart.is_empty() { &own } else { apart };
            // A secret of the environment is in no file; the settings file may then not hold it.
            let mode = std::fs::metadata(file).ok()?.mode() & 0o777;
            let holds = !apart.is_empty() || holds_value(file, secret.reveal());
            (!secret.is_empty() && holds && mode & OTHERS_READ != 0).then(|| {
                format!("{key}: others can read {file} (mode {mode:03o}), which holds it; chmod 600 {file}")
            })
        };
        secrets.into_iter().filter_map(readable).collect()
    }
}

fn holds_value(file: &str, secret: &str) -> bool {
    std::fs::read_to_string(file).is_ok_and(|text| text.contains(secret))
}

#[cfg(test)]
mod tests {
    use super::super::Secret;
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_secret_that_others_can_read_is_named_with_its_file_and_the_cure() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("node.toml");
        let mut config = NodeConfig::default();
        config.cluster.cookie = Secret::new("c".repeat(32));
        fs::write(&file, format!("[cluster]\ncookie = \"{}\"\n", "c".repeat(32))).unwrap();
        let mode = |mode| fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        mode(0o600);
        assert!(config.readable_secrets(Some(&file)).is_empty());
        mode(0o644);
        let said = config.readable_secrets(Some(&file)).join("\n");
        for part in ["cluster.cookie", file.to_str().unwrap(), "mode 644", "chmod 600"] {
            assert!(said.contains(part), "{said:?} lacks {part:?}");
        }
        assert!(!said.contains("ccc"), "the secret itself is not shown");
        fs::write(&file, "[log]\nfilter = \"info\"\n").unwrap();
        assert!(config.readable_secrets(Some(&file)).is_empty(), "it is in the environment");
    }

    #[test]
    fn so_is_a_file_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        fs::write(&file, "s".repeat(16)).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        let mut config = NodeConfig::default();
        config.registration.webhook.secret = Secret::new("s".repeat(16));
        config.registration.webhook.secret_file = file.to_str().unwrap().to_owned();
        let said = config.readable_secrets(None);
        assert!(said.len() == 1 && said[0].contains("registration.webhook.secret"), "{said:?}");
    }
}
