//! Which endpoint a request belongs to: by a session that its client carries, or by a hash of something in it.
//!
//! A session is a text, `ENDPOINT-BEGUN-SEEN` in hexadecimal: a number that stands for the endpoint's address, and the
//! seconds since 1970 of the session's beginning and of its latest request. Nothing in it is secret, and whoever changes
//! it only chooses another of the endpoints that the request could have gone to anyway.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use heddle_wire::{Carrier, Persistence};
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// A session that a request carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    endpoint: u64,
    begun: u64,
    seen: u64,
}

/// A number for an address: the same in all proxies, and spread evenly.
pub fn endpoint_id(addr: SocketAddr) -> u64 {
    let high = match addr.ip() {
        IpAddr::V4(ip) => u64::from(u32::from(ip)),
        IpAddr::V6(ip) => {
            let bits = u128::from(ip);
            mix((bits >> 64) as u64) ^ bits as u64
        }
    };
    mix(mix(high) ^ u64::from(addr.port()))
}

/// A number for a value that a request carries.
pub fn key(value: &[u8]) -> u64 {
    let chunks = value.chunks(8).map(|chunk| {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(bytes)
    });
    chunks.fold(mix(value.len() as u64), |hash, chunk| mix(hash ^ chunk))
}

/// How much an endpoint is the one for a key: the greatest wins (rendezvous hashing), so that an endpoint that comes or
/// goes moves only the keys that it wins or had won.
pub fn score(key: u64, endpoint_id: u64) -> u64 {
    mix(key ^ endpoint_id.rotate_left(32))
}

/// The finalizer of splitmix64.
fn mix(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// The value of a request's cookie or header.
pub fn value<'r>(headers: &'r HeaderMap, carrier: Carrier, name: &str) -> Option<&'r str> {
    match carrier {
        Carrier::Header => headers.get(name)?.to_str().ok(),
        Carrier::Cookie => {
            let all = headers.get_all(header::COOKIE).iter();
            let pairs = all
                .filter_map(|cookies| cookies.to_str().ok())
                .flat_map(|cookies| cookies.split(';'));
            pairs
                .filter_map(|pair| pair.trim().split_once('='))
                .find_map(|(key, value)| (key == name).then_some(value))
        }
    }
}

impl Session {
    /// The session that a request carries, unless it has ended or is none. `now` is in seconds since 1970.
    pub fn of(headers: &HeaderMap, how: &Persistence, now: u64) -> Option<Self> {
        let mut parts = value(headers, how.carrier, &how.name)?.split('-');
        let mut number = || {
            let part = parts.next().filter(|part| !part.is_empty() && part.len() <= 16)?;
            u64::from_str_radix(part, 16).ok()
        };
        let (endpoint, begun, seen) = (number()?, number()?, number()?);
        if parts.next().is_some() {
            return None;
        }
        let lives = |since: u64, limit: Option<Duration>| {
            limit.is_none_or(|limit| now.saturating_sub(since) < limit.as_secs().max(1))
        };
        (lives(begun, how.absolute_timeout) && lives(seen, how.idle_timeout)).then_some(Self {
            endpoint,
            begun,
            seen,
        })
    }

    /// The number of its endpoint, see [`endpoint_id`].
    pub fn endpoint(&self) -> u64 {
        self.endpoint
    }

    /// Tells the client of its session after a request that went to `endpoint`, if there is anything new to tell.
    pub fn tell(before: Option<Self>, endpoint: u64, how: &Persistence, now: u64, headers: &mut HeaderMap) {
        let session = match before {
            Some(before) if before.endpoint == endpoint => {
                if how.idle_timeout.is_none() || before.seen == now {
                    return;
                }
                Self { seen: now, ..before }
            }
            _ => Self {
                endpoint,
                begun: now,
                seen: now,
            },
        };
        let Self {
            endpoint,
            begun,
            seen,
        } = session;
        let text = format!("{endpoint:x}-{begun:x}-{seen:x}");
        let (name, text) = match how.carrier {
            Carrier::Header => match HeaderName::try_from(how.name.as_str()) {
                Ok(name) => (name, text),
                Err(_) => return,
            },
            Carrier::Cookie => {
                let mut cookie = format!("{}={text}; Path=/; HttpOnly; SameSite=Lax", how.name);
                if let Some(limit) = how.absolute_timeout.filter(|_| how.permanent) {
                    let left = limit.as_secs().saturating_sub(now.saturating_sub(begun));
                    cookie.push_str(&format!("; Max-Age={left}"));
                }
                (header::SET_COOKIE, cookie)
            }
        };
        // The wire's names are header names and cookie names, so the value is always one.
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.append(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_cookie() -> Persistence {
        Persistence {
            carrier: Carrier::Cookie,
            name: "s".into(),
            idle_timeout: None,
            absolute_timeout: Some(Duration::from_secs(100)),
            permanent: true,
        }
    }

    fn cookie(text: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, HeaderValue::try_from(text).expect("valid"));
        headers
    }

    #[test]
    fn a_session_leads_back_until_it_ends() {
        let how = by_cookie();
        let mut answer = HeaderMap::new();
        Session::tell(None, 0xabc, &how, 1000, &mut answer);
        let told = answer[header::SET_COOKIE].to_str().expect("text");
        assert_eq!(told, "s=abc-3e8-3e8; Path=/; HttpOnly; SameSite=Lax; Max-Age=100");
        let request = cookie("other=1; s=abc-3e8-3e8");
        let session = Session::of(&request, &how, 1099).expect("it lives");
        assert_eq!(session.endpoint(), 0xabc);
        assert_eq!(Session::of(&request, &how, 1100), None, "its time is over");
        let mut answer = HeaderMap::new();
        Session::tell(Some(session), 0xabc, &how, 1050, &mut answer);
        assert!(answer.is_empty(), "the client knows that already");
        Session::tell(Some(session), 0xdef, &how, 1050, &mut answer);
        assert!(
            answer[header::SET_COOKIE]
                .to_str()
                .expect("text")
                .starts_with("s=def-41a-41a")
        );
    }

    #[test]
    fn an_idle_session_ends_and_a_used_one_goes_on() {
        let how = Persistence {
            carrier: Carrier::Header,
            name: "x-session".into(),
            idle_timeout: Some(Duration::from_secs(10)),
            absolute_timeout: None,
            permanent: false,
        };
        let mut request = HeaderMap::new();
        request.insert("x-session", HeaderValue::from_static("1-64-64"));
        let session = Session::of(&request, &how, 109).expect("nine seconds");
        assert_eq!(Session::of(&request, &how, 110), None);
        let mut answer = HeaderMap::new();
        Session::tell(Some(session), 1, &how, 109, &mut answer);
        assert_eq!(answer["x-session"], "1-64-6d");
    }

    #[test]
    fn what_is_no_session_is_none() {
        for text in [
            "",
            "s",
            "s=",
            "s=1",
            "s=1-2",
            "s=1-2-3-4",
            "s=x-1-1",
            "s=11111111111111111-1-1",
            "t=1-1-1",
        ] {
            assert_eq!(Session::of(&cookie(text), &by_cookie(), 1), None, "{text}");
        }
    }

    #[test]
    fn an_endpoint_that_goes_moves_only_its_own_keys() {
        let ids: Vec<u64> = (1..=10)
            .map(|host| endpoint_id(([10, 0, 0, host], 80).into()))
            .collect();
        let winner = |key: u64, ids: &[u64]| *ids.iter().max_by_key(|id| score(key, **id)).expect("some");
        let mut counts = [0; 10];
        for number in 0..10_000u32 {
            let key = key(format!("user-{number}").as_bytes());
            let all = winner(key, &ids);
            counts[ids.iter().position(|id| *id == all).expect("one of them")] += 1;
            let rest = winner(key, &ids[1..]);
            assert!(
                all == ids[0] || all == rest,
                "a key moved though its endpoint stayed"
            );
        }
        assert!(
            counts.iter().all(|count| (800..1200).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn fuzz_session() {
        bolero::check!()
            .with_type::<(Vec<u8>, u64)>()
            .for_each(|(bytes, now)| {
                let mut headers = HeaderMap::new();
                if let Ok(value) = HeaderValue::from_bytes(bytes) {
                    headers.insert(header::COOKIE, value);
                }
                let how = by_cookie();
                let session = Session::of(&headers, &how, *now);
                let mut answer = HeaderMap::new();
                Session::tell(session, 7, &how, *now, &mut answer);
                let told = answer
                    .get(header::SET_COOKIE)
                    .map(|told| cookie(told.to_str().expect("text")));
                let endpoint = told.map_or(session, |told| Session::of(&told, &how, *now));
                assert_eq!(endpoint.expect("it has just begun").endpoint(), 7);
            });
    }
}
