//! The addresses that the proxy listens on: each is bound at once, so that one in use is told before anything runs.

use std::{io, net::SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use super::StartError;
use crate::{
    control_plane::{admin::Addresses, config::Config},
    data_plane::listener::BACKLOG,
};

/// What the configuration says to listen on.
pub(super) struct Sockets {
    /// For clients. It listens when they can be served.
    pub(super) listener: Socket,
    /// Listens.
    pub(super) admin: Socket,
    /// Listens.
    pub(super) probes: Socket,
}

impl Sockets {
    /// Takes all addresses.
    ///
    /// # Errors
    /// [`StartError::Bind`].
    pub(super) fn bind(config: &Config) -> Result<Self, StartError> {
        Ok(Self {
            listener: bind(LISTENER, config.listener_address)?,
            admin: bind_and_listen("admin.address", config.admin)?,
            probes: bind_and_listen("probes.address", config.probes)?,
        })
    }

    /// Those of `config`, with the ports that they really got.
    pub(super) fn addresses(&self, config: &Config) -> Addresses {
        let address = |socket: &Socket, configured: SocketAddr| {
            let own = socket.local_addr().ok();
            own.and_then(|own| own.as_socket()).unwrap_or(configured)
        };
        Addresses {
            listener: address(&self.listener, config.listener_address),
            admin: address(&self.admin, config.admin),
            probes: address(&self.probes, config.probes),
        }
    }
}

/// Takes the address that `key` of the configuration names.
///
/// # Errors
/// [`StartError::Bind`].
fn bind(key: &'static str, address: SocketAddr) -> Result<Socket, StartError> {
    let bind = || {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        // A restart must not wait for connections of the last run to be forgotten.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok(socket)
    };
    bind().map_err(|source| StartError::Bind {
        key,
        address,
        source,
    })
}

/// Takes the address and listens there.
///
/// # Errors
/// [`StartError::Bind`].
fn bind_and_listen(key: &'static str, address: SocketAddr) -> Result<Socket, StartError> {
    let socket = bind(key, address)?;
    listen(key, address, &socket)?;
    Ok(socket)
}

/// From here on clients may connect. Another process may have bound the same address and begun to listen before.
///
/// # Errors
/// [`StartError::Bind`].
pub(super) fn listen(
    key: &'static str,
    address: SocketAddr,
    socket: &Socket,
) -> Result<(), StartError> {
    socket.listen(BACKLOG).map_err(|source| StartError::Bind {
        key,
        address,
        source,
    })
}

/// What to do about an address that can't be had.
pub(super) fn bind_advice(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "the port is in use; end the process that has it, or choose another port in the configuration".into()
        }
        io::ErrorKind::PermissionDenied => {
            "not permitted; ports below 1024 need a privilege, choose a higher one".into()
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address; choose one of its own, or 0.0.0.0 for all of them".into()
        }
        _ => format!("{error}; choose another address in the configuration"),
    }
}

/// The configuration's key of the address that clients connect to.
pub(super) const LISTENER: &str = "listener.address";
