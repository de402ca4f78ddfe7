//! Who vouches for the servers of a pipeline's sites, and their certificates.

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// How long the one who vouches does, days.
const AUTHORITY_DAYS: u32 = 3650;
/// Clocks of two machines may differ: a certificate holds from so long before it is made.
const BEFORE: Duration = Duration::from_hours(24);

/// Who vouches: an elliptic key of P-256 and its certificate.
pub(super) struct Authority {
    name: String,
    key: KeyPair,
}

/// What a server shows, and its secret.
pub(super) struct Server {
    pub(super) certificate: String,
    pub(super) secret: String,
}

impl Authority {
    pub(super) fn new(pipeline: &str) -> anyhow::Result<Self> {
        Ok(Self { name: pipeline.into(), key: KeyPair::generate()? })
    }

    /// The one that was made before: its certificate follows from its key.
    pub(super) fn of(pipeline: &str, secret: &str) -> anyhow::Result<Self> {
        let key = KeyPair::from_pem(secret).context("cannot read the key of who vouches for the servers")?;
        Ok(Self { name: pipeline.into(), key })
    }

    pub(super) fn secret(&self) -> String {
        self.key.serialize_pem()
    }

    fn params(&self) -> anyhow::Result<CertificateParams> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = named(&format!("Causeway {}", self.name));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        holds(&mut params, AUTHORITY_DAYS)?;
        Ok(params)
    }

    pub(super) fn certificate(&self) -> anyhow::Result<String> {
        Ok(self.params()?.self_signed(&self.key)?.pem())
    }

    /// Of a server that is reached by these names and addresses; `is_peer`: other servers of a cluster let it in as one of theirs.
    pub(super) fn server(&self, site: &str, hosts: &[String], days: u32, is_peer: bool) -> anyhow::Result<Server> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(hosts)
            .with_context(|| format!("cannot make a certificate of {}", hosts.join(", ")))?;
        params.distinguished_name = named(site);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        if is_peer {
            // The servers of a cluster are each other's clients.
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        params.use_authority_key_identifier_extension = true;
        holds(&mut params, days)?;
        let issuer = Issuer::new(self.params()?, &self.key);
        Ok(Server { certificate: params.signed_by(&key, &issuer)?.pem(), secret: key.serialize_pem() })
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut named = DistinguishedName::new();
    named.push(DnType::CommonName, name);
    named
}

/// From yesterday on for so many days.
fn holds(params: &mut CertificateParams, days: u32) -> anyhow::Result<()> {
    let now = SystemTime::now();
    let day = |at: SystemTime| -> anyhow::Result<_> {
        // YYYY-MM-DD
        let text = humantime::format_rfc3339_seconds(at).to_string();
        let mut parts = text.splitn(3, '-');
        let mut next = |len: usize| -> anyhow::Result<u16> {
            Ok(parts.next().and_then(|part| part.get(..len)).context("no date")?.parse()?)
        };
        Ok(date_time_ymd(i32::from(next(4)?), next(2)? as u8, next(2)? as u8))
    };
    params.not_before = day(now - BEFORE)?;
    params.not_after = day(now + Duration::from_hours(24 * (u64::from(days) + 1)))?;
    Ok(())
}
