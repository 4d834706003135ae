//! Loopback addresses that nobody else uses: all of 127.0.0.0/8 is local on Linux.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicU32, Ordering},
};

/// An address of this process alone (its second byte comes from the process id), given out once.
pub fn address() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    let process = 1 + std::process::id() % 250;
    // The last byte is never 0 or 255, which some tools take for a network or a broadcast address.
    Ipv4Addr::new(
        127,
        process as u8,
        (count / 254) as u8,
        (1 + count % 254) as u8,
    )
    .into()
}

/// `count` addresses with one port that is free on all of them: how the pods of one Service look in DNS, whose
/// records have no port.
///
/// # Errors
/// When the kernel has no free port left.
pub fn group(count: usize) -> io::Result<Vec<SocketAddr>> {
    with_one_port(&(0..count).map(|_| address()).collect::<Vec<_>>())
}

/// `addresses` with one port that is free on all of them.
///
/// # Errors
/// When one of them isn't this machine's, or the kernel has no free port left.
pub fn with_one_port(addresses: &[IpAddr]) -> io::Result<Vec<SocketAddr>> {
    let mut last = io::Error::other("no address was asked for");
    for _ in 0..100 {
        let Some(first) = addresses.first() else {
            return Ok(Vec::new());
        };
        let port = std::net::TcpListener::bind((*first, 0))?
            .local_addr()?
            .port();
        let all: Vec<SocketAddr> = addresses
            .iter()
            .map(|ip| SocketAddr::new(*ip, port))
            .collect();
        match all
            .iter()
            .map(std::net::TcpListener::bind)
            .collect::<io::Result<Vec<_>>>()
        {
            Ok(_) => return Ok(all),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// An address where nobody listens: a connection is refused.
///
/// # Errors
/// When the kernel has no free port left.
pub fn refused() -> io::Result<SocketAddr> {
    std::net::TcpListener::bind((address(), 0))?.local_addr()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn addresses_are_given_out_once() {
        let many: Vec<IpAddr> = (0..600).map(|_| address()).collect();
        assert_eq!(many.iter().collect::<HashSet<_>>().len(), many.len());
        assert!(many.iter().all(IpAddr::is_loopback));
    }

    #[test]
    fn a_group_shares_one_free_port() {
        let group = group(4).unwrap();
        assert!(
            group
                .iter()
                .all(|address| address.port() == group[0].port())
        );
        assert_eq!(
            group
                .iter()
                .map(SocketAddr::ip)
                .collect::<HashSet<_>>()
                .len(),
            4
        );
    }
}
