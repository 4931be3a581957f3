//! Authorities and certificates with their keys: made, and kept as the data of one Secret.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};

use crate::certificates::{
    AUTHORITY_LIFE, Authorities, BACKDATED, Certificate, CertificateError, Held, Plan, server_until,
};
use crate::model::time::Time;

/// Why there is no usable material.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// What is kept was not written by us, or somebody changed it.
    #[error("its key `{key}` cannot be used: {problem}")]
    Kept {
        /// Which one.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A certificate could not be made.
    #[error("a certificate could not be made: {0}")]
    Made(#[from] rcgen::Error),
    /// No random numbers.
    #[error("the system has no random numbers")]
    Random,
    /// A time that no certificate can have.
    #[error("the time {0:?} is none that a certificate can have; is the clock right?")]
    Clock(Time),
}

/// A certificate and its key, both in PEM form.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// All that is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Material {
    /// The authority that signs.
    pub authority: Option<Pair>,
    /// The one that will.
    pub successor: Option<Pair>,
    /// The certificate of the one that did.
    pub predecessor: Option<String>,
    /// What the server shows.
    pub server: Option<Pair>,
}

impl Material {
    /// Reads the data of the Secret; empty data is no material.
    ///
    /// # Errors
    /// When a part of it is no text, or a certificate without its key.
    pub fn from_data(data: &BTreeMap<String, ByteString>) -> Result<Self, MaterialError> {
        let text = |key: &'static str| {
            let text = data.get(key).map(|ByteString(bytes)| String::from_utf8(bytes.clone()));
            text.transpose().map_err(|_| kept(key, "is not text"))
        };
        let pair = |certificate: &'static str, key: &'static str| match (text(certificate)?, text(key)?) {
            (Some(certificate), Some(key)) => Ok(Some(Pair { certificate, key })),
            (None, None) => Ok(None),
            (Some(_), None) => Err(kept(key, "is missing")),
            (None, Some(_)) => Err(kept(certificate, "is missing")),
        };
        Ok(Self {
            authority: pair("ca.crt", "ca.key")?,
            successor: pair("next-ca.crt", "next-ca.key")?,
            predecessor: text("last-ca.crt")?,
            server: pair("tls.crt", "tls.key")?,
        })
    }

    /// As the Secret has it.
    pub fn to_data(&self) -> BTreeMap<String, ByteString> {
        let pair = |pair: &Option<Pair>, certificate, key| {
            let pair = pair.clone();
            pair.into_iter().flat_map(move |pair| [(certificate, pair.certificate), (key, pair.key)])
        };
        pair(&self.authority, "ca.crt", "ca.key")
            .chain(pair(&self.successor, "next-ca.crt", "next-ca.key"))
            .chain(self.predecessor.clone().map(|pem| ("last-ca.crt", pem)))
            .chain(pair(&self.server, "tls.crt", "tls.key"))
            .map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())))
            .collect()
    }

    /// What matters of it for [`crate::certificates::plan`].
    ///
    /// # Errors
    /// When a certificate cannot be read.
    pub fn held(&self) -> Result<Held, MaterialError> {
        let read = |key, pem: Option<&String>| {
            let read = pem.map(|pem| Certificate::read(pem.as_bytes()));
            read.transpose().map_err(|err: CertificateError| kept(key, err.to_string()))
        };
        Ok(Held {
            authority: read("ca.crt", self.authority.as_ref().map(|pair| &pair.certificate))?,
            successor: read("next-ca.crt", self.successor.as_ref().map(|pair| &pair.certificate))?,
            predecessor: read("last-ca.crt", self.predecessor.as_ref())?,
            server: read("tls.crt", self.server.as_ref().map(|pair| &pair.certificate))?,
        })
    }

    /// The authorities that agents are to trust, in PEM form.
    pub fn bundle(&self) -> String {
        [&self.authority, &self.successor]
            .into_iter()
            .flatten()
            .map(|pair| pair.certificate.as_str())
            .chain(self.predecessor.as_deref())
            .collect()
    }

    /// Does what was planned.
    ///
    /// # Errors
    /// When a certificate cannot be made.
    pub fn carry_out(&mut self, plan: Plan, names: &[String], now: Time) -> Result<(), MaterialError> {
        if plan.forget_predecessor {
            self.predecessor = None;
        }
        match plan.authorities {
            Authorities::Keep => {}
            Authorities::Anew => *self = Self { authority: Some(authority(now)?), ..Self::default() },
            Authorities::AddSuccessor => self.successor = Some(authority(now)?),
            Authorities::Promote => {
                self.predecessor = self.authority.take().map(|pair| pair.certificate);
                self.authority = self.successor.take();
            }
        }
        if plan.server
            && let Some(authority) = &self.authority
        {
            self.server = Some(server(authority, names, now)?);
        }
        Ok(())
    }
}

fn kept(key: &'static str, problem: impl Into<String>) -> MaterialError {
    MaterialError::Kept { key, problem: problem.into() }
}

fn authority(now: Time) -> Result<Pair, MaterialError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let serial = serial()?;
    // Two authorities of different age have different names, so that one can tell which of them signed.
    let name = format!("sidescope {}", hex(&serial));
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let params = with(params, &name, &serial, now, now.plus(AUTHORITY_LIFE))?;
    Ok(Pair { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() })
}

fn server(authority: &Pair, names: &[String], now: Time) -> Result<Pair, MaterialError> {
    let signer = KeyPair::from_pem(&authority.key).map_err(|err| kept("ca.key", err.to_string()))?;
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate, signer)
        .map_err(|err| kept("ca.crt", err.to_string()))?;
    let ends = Certificate::read(authority.certificate.as_bytes());
    let ends = ends.map_err(|err| kept("ca.crt", err.to_string()))?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(names)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let params = with(params, "sidescope aggregator", &serial()?, now, server_until(&ends, now))?;
    Ok(Pair { certificate: params.signed_by(&key, &issuer)?.pem(), key: key.serialize_pem() })
}

fn with(
    mut params: CertificateParams,
    name: &str,
    serial: &[u8],
    now: Time,
    until: Time,
) -> Result<CertificateParams, MaterialError> {
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from_slice(serial));
    let date = |time: Time| {
        x509_parser::time::ASN1Time::from_timestamp(time.0 / 1_000)
            .map(|time| time.to_datetime())
            .map_err(|_| MaterialError::Clock(time))
    };
    params.not_before = date(now.plus(-BACKDATED))?;
    params.not_after = date(until)?;
    Ok(params)
}

/// Sixteen random bytes; the first bit is not set, for a serial number is positive (RFC 5280), and the second is, so that all are as long.
fn serial() -> Result<[u8; 16], MaterialError> {
    let mut serial = [0; 16];
    SystemRandom::new().fill(&mut serial).map_err(|_| MaterialError::Random)?;
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
pub(crate) mod tests;
