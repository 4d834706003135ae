//! Where a service listens: the flags that all share, and the variable `PORT`.
//!
//! The variable is read here and not by clap, whose messages would blame a flag that nobody wrote.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use thiserror::Error;

/// Where to listen. Flatten it into the service's own command line.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// TCP port to listen on; 0 lets the system choose [default: the variable PORT, else 8080]
    #[arg(long)]
    port: Option<u16>,

    /// IP address to listen on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    address: IpAddr,
}

impl Args {
    /// The address to bind.
    ///
    /// # Errors
    /// `--port` is missing, and `PORT` holds no number of a port.
    pub fn listen_address(&self) -> Result<SocketAddr, PortError> {
        let port = match self.port {
            Some(port) => port,
            None => port(std::env::var_os("PORT"))?,
        };
        Ok(SocketAddr::new(self.address, port))
    }
}

/// `PORT` holds something else than a port.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "the environment variable PORT is {0:?}, which is no TCP port: \
     give a number from 0 to 65535, or --port, or unset it"
)]
pub struct PortError(String);

/// An empty variable counts as unset.
fn port(variable: Option<OsString>) -> Result<u16, PortError> {
    match variable {
        Some(text) if !text.is_empty() => {
            let text = text.to_string_lossy();
            text.parse().map_err(|_| PortError(text.into_owned()))
        }
        _ => Ok(DEFAULT_PORT),
    }
}

const DEFAULT_PORT: u16 = 8080;

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{Args, PortError, port};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &[&str]) -> Result<String, clap::error::ErrorKind> {
        Cli::try_parse_from(line)
            .map(|cli| cli.args.listen_address().unwrap().to_string())
            .map_err(|error| error.kind())
    }

    #[test]
    fn flags_name_the_listen_address() {
        assert_eq!(parse(&["echo", "--port", "8081"]).unwrap(), "0.0.0.0:8081");
        assert_eq!(
            parse(&["echo", "--port=1", "--address", "127.0.0.3"]).unwrap(),
            "127.0.0.3:1"
        );
        assert_eq!(
            parse(&["echo", "--port=1", "--address=::1"]).unwrap(),
            "[::1]:1"
        );
    }

    #[test]
    fn what_is_no_port_or_address_is_refused() {
        use clap::error::ErrorKind::{UnknownArgument, ValueValidation};
        assert_eq!(parse(&["echo", "--port", "65536"]), Err(ValueValidation));
        assert_eq!(
            parse(&["echo", "--port=1", "--address", "localhost"]),
            Err(ValueValidation)
        );
        assert_eq!(
            parse(&["echo", "--port=1", "--host", "x"]),
            Err(UnknownArgument)
        );
    }

    #[test]
    fn the_variable_is_a_port_or_as_good_as_unset() {
        let port = |text: &str| port(Some(text.into()));
        assert_eq!(port("8081"), Ok(8081));
        assert_eq!(port(""), Ok(8080));
        assert_eq!(super::port(None), Ok(8080));
        for wrong in ["tcp://10.0.0.1:80", "65536", "-1", " ", "8081 "] {
            assert_eq!(port(wrong), Err(PortError(wrong.to_owned())));
        }
    }
}
