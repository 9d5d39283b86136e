//! Chains that were found good before, so that a peer that comes again costs one signature less. That it holds the key is
//! proved at each handshake all the same; only that the chain leads to the anchors is not computed twice.
//!
//! Belongs to one set of trust anchors: with others there is another of these. Not for use beside revocation lists.

use std::{collections::HashMap, iter, ops::RangeInclusive, sync::Mutex};

use aws_lc_rs::digest;
use rustls::{
    Error,
    pki_types::{CertificateDer, UnixTime},
};
use x509_parser::prelude::{FromDer, X509Certificate};

/// 56 bytes each; the peers of a pod are some dozens.
const KNOWN_MAX: usize = 512;

/// When all of a chain's certificates are valid, in seconds since 1970.
type Valid = RangeInclusive<u64>;

#[derive(Debug, Default)]
pub(super) struct Known(Mutex<HashMap<[u8; 32], Valid>>);

impl Known {
    /// Verifies a chain for a name, unless just this was found good before and is still valid.
    pub(super) fn or_verify(
        &self,
        name: &str,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        verify: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let key = key(name, leaf, intermediates);
        let found = self.locked().get(&key).cloned();
        if found.is_some_and(|valid| valid.contains(&now.as_secs())) {
            return Ok(());
        }
        verify()?;
        // A chain whose times cannot be read is verified each time.
        if let Some(valid) = valid(leaf, intermediates) {
            let mut known = self.locked();
            if known.len() >= KNOWN_MAX {
                known.clear();
            }
            known.insert(key, valid);
        }
        Ok(())
    }

    /// A panic leaves nothing half changed, so a poisoned lock is as good as another.
    fn locked(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], Valid>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A digest of every byte, with lengths, so that no two chains have the same.
fn key(name: &str, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> [u8; 32] {
    let mut digest = digest::Context::new(&digest::SHA256);
    let mut add = |piece: &[u8]| {
        digest.update(&(piece.len() as u64).to_be_bytes());
        digest.update(piece);
    };
    add(name.as_bytes());
    for cert in iter::once(leaf).chain(intermediates) {
        add(cert);
    }
    let mut key = [0; 32];
    key.copy_from_slice(digest.finish().as_ref());
    key
}

fn valid(leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Option<Valid> {
    let (mut from, mut until) = (0, u64::MAX);
    for cert in iter::once(leaf).chain(intermediates) {
        let (_, cert) = X509Certificate::from_der(cert).ok()?;
        let validity = cert.validity();
        from = from.max(u64::try_from(validity.not_before.timestamp()).ok()?);
        until = until.min(u64::try_from(validity.not_after.timestamp()).ok()?);
    }
    Some(from..=until)
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, time::Duration};

    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn leaf() -> CertificateDer<'static> {
        let mut params = CertificateParams::new(["a.test".to_owned()]).expect("a name");
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 2);
        let key = KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("a certificate").der().clone()
    }

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    const BEGIN: u64 = 1_577_836_800;
    const END: u64 = BEGIN + 24 * 60 * 60;

    #[test]
    fn only_the_same_chain_for_the_same_name_while_it_is_valid_is_known() {
        let (known, leaf, other) = (Known::default(), leaf(), leaf());
        let verified = Cell::new(0);
        let times = |name: &str, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>], now| {
            let before = verified.get();
            let verify = || {
                verified.set(before + 1);
                Ok(())
            };
            known
                .or_verify(name, leaf, intermediates, at(now), verify)
                .expect("it is good");
            verified.get() - before
        };
        assert_eq!(times("a", &leaf, &[], BEGIN), 1);
        assert_eq!(times("a", &leaf, &[], BEGIN), 0);
        assert_eq!(times("a", &leaf, &[], END), 0);
        assert_eq!(times("a", &leaf, &[], END + 1), 1, "it is over");
        assert_eq!(times("a", &leaf, &[], BEGIN - 1), 1, "the clock went back");
        assert_eq!(times("b", &leaf, &[], BEGIN), 1, "another name");
        assert_eq!(times("a", &other, &[], BEGIN), 1, "another certificate");
        assert_eq!(times("a", &leaf, &[other], BEGIN), 1, "another chain");
    }

    #[test]
    fn what_is_refused_is_not_known_and_the_number_is_bounded() {
        let (known, leaf) = (Known::default(), leaf());
        let refuse = || Err(Error::DecryptError);
        for _ in 0..2 {
            assert!(known.or_verify("a", &leaf, &[], at(BEGIN), refuse).is_err());
        }
        for name in 0..3 * KNOWN_MAX {
            known
                .or_verify(&name.to_string(), &leaf, &[], at(BEGIN), || Ok(()))
                .expect("it is good");
            assert!(known.locked().len() <= KNOWN_MAX);
        }
    }
}
