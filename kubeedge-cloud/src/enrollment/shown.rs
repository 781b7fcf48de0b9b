//! What the cloud shows to those that connect to it, and whom it believes: kept fresh while it runs.

use std::{path::PathBuf, time::Duration};

use kubeedge_core::tls::{self, Identity, Lifetime, Live};

use super::{Error, ServerCertificate, Trusted};

/// One identity of the cloud.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) certificate: Certificate,
    pub(super) believed: Believed,
    pub(super) tls: Live,
}

/// Which certificate is shown.
#[derive(Debug)]
pub(super) enum Certificate {
    /// That of a server.
    Server(ServerCertificate),
    /// That of one of the clouds that serve the same API.
    Cloud { name: String, addresses: Vec<String> },
}

/// Whose certificates are taken.
#[derive(Debug)]
pub(super) enum Believed {
    /// Those of the cloud's own authorities.
    Own,
    /// Those of the authorities in a file that somebody else keeps.
    File(PathBuf),
    /// None is asked for.
    Nobody,
}

impl Shown {
    /// Begins to show something.
    pub(super) fn open(&self, trusted: &Trusted, lasts: Duration) -> Result<(), Error> {
        match &self.believed {
            Believed::Own => self.tls.trust(trusted.roots()?)?,
            Believed::File(file) => self.tls.trust(tls::roots_from_file(file)?)?,
            Believed::Nobody => {}
        }
        Ok(self.tls.show(self.identity(trusted, lasts)?)?)
    }

    /// Goes on with other authorities; `follows` says that another one signs.
    pub(super) fn adopt(&self, trusted: &Trusted, follows: bool, lasts: Duration) -> Result<(), Error> {
        if matches!(self.believed, Believed::Own) {
            self.tls.trust(trusted.roots()?)?;
        }
        if follows {
            self.tls.show(self.identity(trusted, lasts)?)?;
        }
        Ok(())
    }

    /// Renews the certificate in time, and takes what somebody has changed in files.
    pub(super) fn refresh(&self, trusted: &Trusted, lasts: Duration, now: Duration) -> Result<(), Error> {
        if let Believed::File(file) = &self.believed {
            let roots = tls::roots_from_file(file)?;
            if roots.roots != self.tls.roots().roots {
                self.tls.trust(roots)?;
                tracing::info!(file = %file.display(), "the authorities of callers have changed");
            }
        }
        let Some(shown) = self.tls.identity() else { return Ok(()) };
        let is_due = match &self.certificate {
            Certificate::Server(ServerCertificate::Files { .. }) => true,
            Certificate::Server(ServerCertificate::Issued { .. }) | Certificate::Cloud { .. } => {
                now >= Lifetime::of(shown.certificate())?.renewal()
            }
        };
        if !is_due {
            return Ok(());
        }
        let next = self.identity(trusted, lasts)?;
        if next.certificate() != shown.certificate() {
            self.tls.show(next)?;
            tracing::info!("the cloud shows another certificate from here on");
        }
        Ok(())
    }

    fn identity(&self, trusted: &Trusted, lasts: Duration) -> Result<Identity, Error> {
        let issued = match &self.certificate {
            Certificate::Server(ServerCertificate::Files { certificate, key }) => {
                return Ok(Identity::from_files(certificate, key)?);
            }
            Certificate::Server(ServerCertificate::Issued { names }) => {
                trusted.authority().issue_server(names, lasts)?
            }
            Certificate::Cloud { name, addresses } => {
                trusted.authority().issue_cloud(name, addresses, lasts)?
            }
        };
        Ok(Identity::from_pem(issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes())?)
    }
}
