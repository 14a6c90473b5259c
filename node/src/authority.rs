//! The development authority of a cluster: it signs the certificates of nodes whose settings name none.
//!
//! Its key comes from the cookie, so all nodes of a cluster have the same one, and a client that trusts it
//! trusts them all. Whoever knows the cookie can sign as it does: it is for development and for networks of
//! one's own, and clients trust it only if they are told to.
//!
//! # Invariants
//! 1. The same cookie gives the same key on every machine, and a key that serves nothing else.
//! 2. The key is in no file.

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::PrivatePkcs8KeyDer;

/// Keeps this key apart from the others that come from the cookie.
const PURPOSE: &[u8] = b"natter/1 development authority";

/// What stands around the 32 bytes of a P-256 key in RFC 5915. Browsers know this curve and not Ed25519.
const KEY_PREFIX: [u8; 7] = [0x30, 0x31, 0x02, 0x01, 0x01, 0x04, 0x20];
const KEY_SUFFIX: [u8; 12] =
    [0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// One of 2^32 keys is out of the curve's range; then the next is tried.
const TRIES: u8 = 8;

/// The authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// A certificate and its key, in PEM form.
pub(crate) struct Issued {
    /// The certificate and that of the authority behind it.
    pub(crate) chain: String,
    /// Its key.
    pub(crate) key: String,
}

impl Authority {
    /// The authority of all nodes with this cookie.
    ///
    /// # Errors
    /// If the cryptography library does not work.
    pub(crate) fn of(cookie: &str) -> Result<Self, rcgen::Error> {
        let key = authority_key(cookie)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named("natter development authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        set_term(&mut params);
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// Its certificate, in PEM form: what clients must trust.
    pub(crate) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A new key, and a certificate of it for these host names and addresses.
    ///
    /// # Errors
    /// If one is neither.
    pub(crate) fn issue(&self, names: &[String]) -> Result<Issued, rcgen::Error> {
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = named("natter development");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        set_term(&mut params);
        let key = KeyPair::generate()?;
        let chain = params.signed_by(&key, &self.issuer)?.pem() + &self.certificate;
        Ok(Issued { chain, key: key.serialize_pem() })
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut named = DistinguishedName::new();
    named.push(DnType::CommonName, name);
    named
}

fn set_term(params: &mut CertificateParams) {
    params.not_before = rcgen::date_time_ymd(2025, 1, 1);
    params.not_after = rcgen::date_time_ymd(2045, 1, 1);
}

fn authority_key(cookie: &str) -> Result<KeyPair, rcgen::Error> {
    let derive = hmac::Key::new(hmac::HMAC_SHA256, cookie.as_bytes());
    let made = (0..TRIES).find_map(|number| {
        let secret = hmac::sign(&derive, &[PURPOSE, &[number]].concat());
        let der = [&KEY_PREFIX, secret.as_ref(), &KEY_SUFFIX].concat();
        let key = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, &der).ok()?;
        Some(key.to_pkcs8v1().ok()?.as_ref().to_vec())
    });
    let made = made.ok_or(rcgen::Error::RingUnspecified)?;
    KeyPair::try_from(&PrivatePkcs8KeyDer::from(made))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_with_one_cookie_have_one_authority_and_others_another() {
        let key = |cookie| authority_key(cookie).unwrap().serialize_pem();
        assert_eq!(key("one cookie"), key("one cookie"));
        assert_ne!(key("one cookie"), key("another cookie"));
    }

    #[test]
    fn every_node_has_a_key_of_its_own() {
        let authority = Authority::of("cookie").unwrap();
        let names = ["localhost".to_owned()];
        let [one, other] = [(), ()].map(|()| authority.issue(&names).unwrap());
        assert_ne!(one.key, other.key);
        assert!(one.chain.ends_with(authority.certificate()));
        assert!(authority.issue(&["\u{e9}".to_owned()]).is_err());
    }
}
