//! The flags that all services share.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Where to listen. Flatten it into the service's own command line.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// TCP port to listen on; 0 lets the system choose
    #[arg(long, env = "PORT", default_value_t = 8080)]
    port: u16,

    /// IP address to listen on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    address: IpAddr,
}

impl Args {
    /// The address to bind.
    pub fn listen_address(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::Args;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &[&str]) -> Result<String, clap::error::ErrorKind> {
        Cli::try_parse_from(line)
            .map(|cli| cli.args.listen_address().to_string())
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
}
