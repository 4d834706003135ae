//! Whose a connection or an RPC is, wherever clients are counted or take turns.
//!
//! With IPv6 a host is given a /64 and takes any of its addresses (RFC 4291 §2.5.4, RFC 8981): were each one a client, a
//! single host would be as many as it likes. Of an IPv4 host there is no more than its address.

use std::net::{IpAddr, Ipv6Addr};

/// An IPv4 address, or the /64 of an IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Source(IpAddr);

impl From<IpAddr> for Source {
    /// An IPv4 address is one on an IPv6 socket too.
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & NETWORK).into(),
            v4 => v4,
        })
    }
}

#[cfg(test)]
impl From<[u8; 4]> for Source {
    fn from(address: [u8; 4]) -> Self {
        IpAddr::from(address).into()
    }
}

/// The 64 bits of an IPv6 address that aren't its host's to choose.
const NETWORK: u128 = !(u64::MAX as u128);

#[cfg(test)]
mod tests {
    use super::*;

    fn source(address: &str) -> Source {
        address.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn all_addresses_of_a_64_are_one_source() {
        for one in ["2001:db8:1:2::", "2001:db8:1:2::7", "2001:db8:1:2:ffff::"] {
            assert_eq!(source(one), source("2001:db8:1:2:3:4:5:6"));
        }
        for other in ["2001:db8:1:3::7", "2001:db9:1:2::7", "::7"] {
            assert_ne!(source(other), source("2001:db8:1:2::7"));
        }
    }

    #[test]
    fn an_ipv4_address_is_a_source_and_on_an_ipv6_socket_the_same() {
        assert_eq!(source("::ffff:192.0.2.7"), source("192.0.2.7"));
        assert_ne!(source("192.0.2.8"), source("192.0.2.7"));
        assert_ne!(source("::ffff:192.0.2.8"), source("::ffff:192.0.2.7"));
        // Not to be taken for the network that all of those would be in.
        assert_ne!(source("::1"), source("0.0.0.1"));
    }
}
