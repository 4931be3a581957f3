//! When the certificates that the aggregator makes for itself are made anew. Pure.
//!
//! An authority signs the server's certificate, and agents trust the authorities of a bundle. Before an authority ends it gets a
//! successor, which is in the bundle for [`PUBLISHED`] before it signs anything; its predecessor stays in the bundle until its end. So
//! whichever certificate the server shows, every agent that has read the bundle within [`PUBLISHED`] trusts it.

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{X509Certificate, parse_x509_pem};

use crate::model::time::Time;

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;

/// How long an authority lives.
pub const AUTHORITY_LIFE: i64 = 365 * DAY;
/// An authority with less than this left gets a successor.
pub const SUCCESSOR_BEFORE: i64 = 120 * DAY;
/// How long a successor is in the bundle before it signs.
pub const PUBLISHED: i64 = 14 * DAY;
/// How long a server's certificate lives; never longer than the authority that signed it.
pub const SERVER_LIFE: i64 = 90 * DAY;
/// A server's certificate with less than this left is renewed, or with less than a third of its life.
pub const RENEW_BEFORE: i64 = 30 * DAY;
/// Certificates are valid from this long before they were made, for clocks that are behind.
pub const BACKDATED: i64 = HOUR;

/// What matters of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Valid from then.
    pub from: Time,
    /// Valid until then.
    pub until: Time,
    /// DNS names that it is for, sorted.
    pub names: Vec<String>,
    /// Name of the authority that signed it, encoded.
    pub issuer: Vec<u8>,
    /// Its own name, encoded.
    pub subject: Vec<u8>,
}

/// Why a certificate cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// No PEM.
    #[error("no certificate in PEM form (`-----BEGIN CERTIFICATE-----`): {0}")]
    Pem(String),
    /// What the PEM holds is no certificate.
    #[error("not an X.509 certificate: {0}")]
    X509(String),
}

impl Certificate {
    /// The first certificate of a PEM text.
    ///
    /// # Errors
    /// When there is none.
    pub fn read(pem: &[u8]) -> Result<Self, CertificateError> {
        let (_, pem) = parse_x509_pem(pem).map_err(|err| CertificateError::Pem(err.to_string()))?;
        let read = pem.parse_x509().map_err(|err| CertificateError::X509(err.to_string()))?;
        let validity = read.validity();
        Ok(Self {
            from: Time(validity.not_before.timestamp().saturating_mul(1_000)),
            until: Time(validity.not_after.timestamp().saturating_mul(1_000)),
            names: names(&read),
            issuer: read.issuer().as_raw().to_vec(),
            subject: read.subject().as_raw().to_vec(),
        })
    }
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let mut names: Vec<String> = alternative
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        })
        .collect();
    names.sort();
    names
}

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The authority that signs.
    pub authority: Option<Certificate>,
    /// The one that will.
    pub successor: Option<Certificate>,
    /// The one that did.
    pub predecessor: Option<Certificate>,
    /// The server's.
    pub server: Option<Certificate>,
}

/// What to do about the authorities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authorities {
    /// Nothing.
    Keep,
    /// Make one, and forget those that were.
    Anew,
    /// Make a successor.
    AddSuccessor,
    /// The successor signs from now on.
    Promote,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// About the authorities, before all else.
    pub authorities: Authorities,
    /// The predecessor has ended: it leaves the bundle.
    pub forget_predecessor: bool,
    /// Make a certificate for the server.
    pub server: bool,
}

impl Plan {
    /// Whether all stays as it is.
    pub fn is_nothing(&self) -> bool {
        self.authorities == Authorities::Keep && !self.forget_predecessor && !self.server
    }
}

/// What to do at `now`, for a server that is to be reached under these names (sorted).
pub fn plan(held: &Held, names: &[String], now: Time) -> Plan {
    let authorities = authorities(held, now);
    let anew = matches!(authorities, Authorities::Anew | Authorities::Promote);
    let good = |server: &Certificate, authority: &Certificate| {
        server.issuer == authority.subject && server.names == names && !is_due(server, now)
    };
    let server_is_good = match (&held.server, &held.authority) {
        (Some(server), Some(authority)) => good(server, authority),
        _ => false,
    };
    Plan {
        authorities,
        forget_predecessor: held.predecessor.as_ref().is_some_and(|predecessor| predecessor.until <= now),
        server: anew || !server_is_good,
    }
}

fn authorities(held: &Held, now: Time) -> Authorities {
    let Some(authority) = &held.authority else { return Authorities::Anew };
    let ended = authority.until <= now;
    match &held.successor {
        Some(successor) if ended && successor.until <= now => Authorities::Anew,
        Some(successor) => {
            let published = successor.from.plus(BACKDATED + PUBLISHED);
            // Found late, it is still in the bundle for as long as can be.
            if published.min(authority.until.plus(-DAY)) <= now {
                Authorities::Promote
            } else {
                Authorities::Keep
            }
        }
        None if ended => Authorities::Anew,
        None if authority.until.since(now) < SUCCESSOR_BEFORE => Authorities::AddSuccessor,
        None => Authorities::Keep,
    }
}

fn is_due(server: &Certificate, now: Time) -> bool {
    let life = server.until.since(server.from);
    server.until.since(now) < RENEW_BEFORE.min(life / 3)
}

/// When a server's certificate ends that is made at `now`.
pub fn server_until(authority: &Certificate, now: Time) -> Time {
    now.plus(SERVER_LIFE).min(authority.until)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time(1_900_000_000_000);

    fn authority(name: u8, left: i64) -> Certificate {
        let until = NOW.plus(left);
        Certificate {
            from: until.plus(-AUTHORITY_LIFE - BACKDATED),
            until,
            names: vec![],
            issuer: vec![name],
            subject: vec![name],
        }
    }

    fn server(authority: u8, left: i64) -> Certificate {
        Certificate {
            from: NOW.plus(left - SERVER_LIFE),
            until: NOW.plus(left),
            names: names(),
            issuer: vec![authority],
            subject: vec![],
        }
    }

    fn names() -> Vec<String> {
        vec!["a.b.svc".to_owned()]
    }

    fn held() -> Held {
        Held {
            authority: Some(authority(1, 300 * DAY)),
            server: Some(server(1, 60 * DAY)),
            ..Held::default()
        }
    }

    #[test]
    fn what_is_good_stays() {
        assert!(plan(&held(), &names(), NOW).is_nothing());
    }

    #[test]
    fn table() {
        use Authorities::{AddSuccessor, Anew, Keep, Promote};
        type Change = fn(&mut Held);
        let cases: [(&str, Change, Authorities, bool, bool); 15] = [
            ("nothing there", |held| *held = Held::default(), Anew, false, true),
            ("no server", |held| held.server = None, Keep, false, true),
            ("server soon over", |held| held.server = Some(server(1, 29 * DAY)), Keep, false, true),
            ("server not soon over", |held| held.server = Some(server(1, 31 * DAY)), Keep, false, false),
            (
                "server of another authority",
                |held| held.server = Some(server(2, 60 * DAY)),
                Keep,
                false,
                true,
            ),
            (
                "other names",
                |held| held.server = Some(Certificate { names: vec![], ..server(1, 60 * DAY) }),
                Keep,
                false,
                true,
            ),
            ("authority over", |held| held.authority = Some(authority(1, -1)), Anew, false, true),
            (
                "authority soon over",
                |held| held.authority = Some(authority(1, 119 * DAY)),
                AddSuccessor,
                false,
                false,
            ),
            (
                "successor just made",
                |held| {
                    held.authority = Some(authority(1, 118 * DAY));
                    held.successor = Some(authority(2, AUTHORITY_LIFE - 13 * DAY));
                },
                Keep,
                false,
                false,
            ),
            (
                "successor known for long",
                |held| {
                    held.authority = Some(authority(1, 106 * DAY));
                    held.successor = Some(authority(2, AUTHORITY_LIFE - 14 * DAY));
                },
                Promote,
                false,
                true,
            ),
            (
                "found late",
                |held| {
                    held.authority = Some(authority(1, DAY));
                    held.successor = Some(authority(2, AUTHORITY_LIFE - DAY));
                },
                Promote,
                false,
                true,
            ),
            (
                "authority over, successor there",
                |held| {
                    held.authority = Some(authority(1, -DAY));
                    held.successor = Some(authority(2, DAY));
                },
                Promote,
                false,
                true,
            ),
            (
                "both over",
                |held| {
                    held.authority = Some(authority(1, -DAY));
                    held.successor = Some(authority(2, 0));
                },
                Anew,
                false,
                true,
            ),
            ("predecessor over", |held| held.predecessor = Some(authority(3, 0)), Keep, true, false),
            ("predecessor not over", |held| held.predecessor = Some(authority(3, 1)), Keep, false, false),
        ];
        for (case, change, authorities, forget_predecessor, server) in cases {
            let mut held = held();
            change(&mut held);
            let expected = Plan { authorities, forget_predecessor, server };
            assert_eq!(plan(&held, &names(), NOW), expected, "{case}");
        }
    }

    /// Ten years, an hour at a time: an agent that reads the bundle once in 13 days never meets a certificate that it does not trust.
    #[test]
    fn agents_that_read_the_bundle_now_and_then_always_trust_the_server() {
        let mut held = Held::default();
        let mut made = 0u8;
        let mut make = |now: Time| {
            made += 1;
            Certificate {
                from: now.plus(-BACKDATED),
                until: now.plus(AUTHORITY_LIFE),
                names: vec![],
                issuer: vec![made],
                subject: vec![made],
            }
        };
        let mut known: Vec<Certificate> = Vec::new();
        let mut switches = 0;
        for hour in 0..10 * 365 * 24 {
            let now = NOW.plus(hour * HOUR);
            let plan = plan(&held, &names(), now);
            match plan.authorities {
                Authorities::Keep => {}
                Authorities::Anew => held.authority = Some(make(now)),
                Authorities::AddSuccessor => held.successor = Some(make(now)),
                Authorities::Promote => {
                    held.predecessor = held.authority.take();
                    held.authority = held.successor.take();
                    switches += 1;
                }
            }
            if plan.forget_predecessor {
                held.predecessor = None;
            }
            let authority = held.authority.clone().unwrap();
            if plan.server {
                held.server = Some(Certificate {
                    from: now.plus(-BACKDATED),
                    until: server_until(&authority, now),
                    names: names(),
                    issuer: authority.subject.clone(),
                    subject: vec![],
                });
            }
            let server = held.server.clone().unwrap();
            assert!(server.until.since(now) >= RENEW_BEFORE - HOUR, "hour {hour}");
            if hour % (13 * 24) == 0 {
                known = [&held.authority, &held.successor, &held.predecessor]
                    .into_iter()
                    .flatten()
                    .cloned()
                    .collect();
            }
            assert!(
                known.iter().any(|known| known.subject == server.issuer && known.until > now),
                "hour {hour}"
            );
        }
        assert!(switches > 10, "{switches}");
    }

    #[test]
    fn what_is_no_certificate_says_so() {
        for (pem, word) in [
            (&b""[..], "PEM"),
            (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "X.509"),
            (b"\xff\xfe", "PEM"),
        ] {
            let err = Certificate::read(pem).unwrap_err().to_string();
            assert!(err.contains(word), "{err}");
        }
    }
}
