//! A certificate that the user gives as files, taken anew when they change.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use tokio::time::sleep;
use tracing::{info, warn};

use super::serving::{Serving, TlsError};
use crate::certificates::{Certificate, CertificateError};
use crate::model::time::Time;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(30);
/// From how many milliseconds before its end on a certificate that nobody has renewed is told of.
const NEAR: i64 = 14 * 24 * 3_600_000;

/// A certificate and its key, both in PEM form.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate, with those between it and its authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Why files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// One of them cannot be read.
    #[error("{path} cannot be read: {source}")]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The certificate.
    #[error("{path} holds {source}")]
    Certificate {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        source: CertificateError,
    },
    /// Both of them.
    #[error("{certificate} and {key}: {source}")]
    Tls {
        /// Where the certificate is.
        certificate: PathBuf,
        /// Where the key is.
        key: PathBuf,
        /// What is wrong.
        source: TlsError,
    },
    /// It is over.
    #[error("the certificate in {path} has ended; agents will not accept it: renew it")]
    Ended {
        /// Where.
        path: PathBuf,
    },
}

/// What was read last.
#[derive(Default)]
struct Read {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Files {
    /// Shows what the files hold, for as long as it is polled; what was shown before stays when they hold nothing good.
    pub async fn run(&self, serving: Arc<Serving>, clock: fn() -> Time) {
        let mut shown = Read::default();
        let mut told = None;
        loop {
            let err = self.reload(&serving, &mut shown, clock()).err().map(|err| err.to_string());
            if let Some(err) = &err
                && told.as_ref() != Some(err)
            {
                warn!(%err, "the aggregator's certificate");
            }
            told = err;
            sleep(LOOK).await;
        }
    }

    /// Shows what the files hold now.
    ///
    /// # Errors
    /// When that is nothing good.
    pub fn show(&self, serving: &Serving, now: Time) -> Result<(), FilesError> {
        self.reload(serving, &mut Read::default(), now)
    }

    fn reload(&self, serving: &Serving, shown: &mut Read, now: Time) -> Result<(), FilesError> {
        let read =
            |path: &PathBuf| fs::read(path).map_err(|source| FilesError::Read { path: path.clone(), source });
        let found = Read { certificate: read(&self.certificate)?, key: read(&self.key)? };
        let path = || self.certificate.clone();
        let certificate = Certificate::read(&found.certificate)
            .map_err(|source| FilesError::Certificate { path: path(), source })?;
        if found.certificate != shown.certificate || found.key != shown.key {
            serving.show(&found.certificate, &found.key).map_err(|source| FilesError::Tls {
                certificate: path(),
                key: self.key.clone(),
                source,
            })?;
            info!(file = %self.certificate.display(), "the certificate was read");
            if (0..NEAR).contains(&certificate.until.since(now)) {
                warn!(file = %self.certificate.display(), "the certificate ends within two weeks: renew it");
            }
            *shown = found;
        }
        if certificate.until <= now { Err(FilesError::Ended { path: path() }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::material::tests::{NOW, material};

    #[test]
    fn files_are_shown_and_shown_anew_when_they_change() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files { certificate: folder.path().join("crt"), key: folder.path().join("key") };
        let serving = Serving::default();
        assert!(matches!(files.show(&serving, NOW), Err(FilesError::Read { .. })));

        let write = |certificate: &str, key: &str| {
            fs::write(&files.certificate, certificate).unwrap();
            fs::write(&files.key, key).unwrap();
        };
        let (one, other) = (material().server.unwrap(), material().server.unwrap());
        write(&one.certificate, &one.key);
        let mut shown = Read::default();
        files.reload(&serving, &mut shown, NOW).unwrap();
        assert_eq!(shown.key, one.key.as_bytes());

        // A key that is not the certificate's: the one before stays.
        write(&other.certificate, &one.key);
        let err = files.reload(&serving, &mut shown, NOW).unwrap_err().to_string();
        assert!(err.contains("crt") && err.contains("key"), "{err}");
        assert_eq!(shown.certificate, one.certificate.as_bytes());

        write(&other.certificate, &other.key);
        files.reload(&serving, &mut shown, NOW).unwrap();
        assert_eq!(shown.certificate, other.certificate.as_bytes());

        let later = NOW.plus(100 * 24 * 3_600_000);
        assert!(matches!(files.reload(&serving, &mut shown, later), Err(FilesError::Ended { .. })));
    }
}
