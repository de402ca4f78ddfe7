//! Addresses of servers: `tls://user:password@hub.example:4222`.

use std::net::IpAddr;

/// The host of an address, without brackets.
pub fn host_of(address: &str) -> Option<&str> {
    let address = address.trim();
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let rest = rest.rsplit('@').next()?;
    let host = match rest.strip_prefix('[') {
        Some(six) => six.split(']').next()?,
        None => rest.split(':').next()?,
    };
    (!host.is_empty()).then_some(host)
}

/// Whether an address is of this machine.
pub fn is_local(address: &str) -> bool {
    let is_loopback = |host: &str| host == "localhost" || host.parse::<IpAddr>().is_ok_and(|host| host.is_loopback());
    host_of(address).is_some_and(is_loopback)
}

/// An address without the password that it may carry.
pub(crate) fn redact(address: &str) -> String {
    match (address.find("://"), address.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}://…{}", &address[..scheme], &address[at..]),
        _ => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_this_machine() {
        for local in ["nats://127.0.0.1:4222", "tls://localhost:1", "ws://[::1]:80", "nats://me:it@127.0.0.2:4222"] {
            assert!(is_local(local), "{local}");
        }
        for far in
            ["nats://127.evil.example:4222", "tls://localhost.evil.example", "nats://0.0.0.0:1", "", "tls://a@10.0.0.1"]
        {
            assert!(!is_local(far), "{far}");
        }
        assert_eq!(host_of(" tls://me:it@hub.example:4222"), Some("hub.example"));
        assert_eq!(host_of("nats://[fd00::1]:4222"), Some("fd00::1"));
    }
}
