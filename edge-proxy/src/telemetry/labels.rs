//! The values that a metric's labels may have: closed sets, each value named once.
//!
//! Whatever a client sends never becomes a label (see [`methods`](super::methods) for the one
//! exception and its proof), so the number of series is known from the configuration.

/// A closed set of label values: an index for the counter, a text for the exposition.
pub trait Label: Copy + Sized + 'static {
    /// All values, by index.
    const ALL: &'static [Self];

    /// Position in [`ALL`](Self::ALL).
    fn index(self) -> usize;

    /// As exported.
    fn as_str(self) -> &'static str;
}

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// How many values there are.
            pub const COUNT: usize = [$($text),+].len();
        }

        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            #[inline]
            fn index(self) -> usize {
                self as usize
            }

            fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

labels! {
    /// Whose connection.
    Side {
        /// From a client.
        Downstream = "downstream",
        /// To a backend.
        Upstream = "upstream",
    }
}

labels! {
    /// How a TLS handshake with a client ended.
    HandshakeResult {
        /// A full handshake.
        Ok = "ok",
        /// Resumed from a ticket.
        Resumed = "resumed",
        /// The client broke it off, or broke the protocol.
        Failed = "failed",
        /// Longer than `tls_handshake`.
        TimedOut = "timed_out",
        /// Given up for a newer one, since too many were pending; or refused by a limit, or by overload, before it began.
        Refused = "refused",
    }
}

labels! {
    /// Why a stream ended by a reset.
    ResetCause {
        /// The client reset it.
        ClientCancel = "client_cancel",
        /// The backend reset it.
        UpstreamReset = "upstream_reset",
        /// The deadline of the client or of the route passed.
        Deadline = "deadline",
        /// Nothing moved for `stream_idle`.
        IdleTimeout = "idle_timeout",
        /// The client's window stayed shut for `stream_window_stall`.
        WindowStall = "window_stall",
        /// What it held was needed elsewhere.
        Overload = "overload",
        /// `drain.deadline`, or its connection's grace, passed.
        Drain = "drain",
        /// What the peer sent breaks HTTP/2 or HTTP.
        Malformed = "malformed",
        /// A budget against floods ran out.
        Flood = "flood",
        /// An error of ours.
        Internal = "internal",
        /// Its connection ended.
        ConnectionClosed = "connection_closed",
    }
}

labels! {
    /// A limit that acted.
    Limit {
        /// `max_connections`.
        Connections = "connections",
        /// `max_connections_per_source`.
        ConnectionsPerSource = "connections_per_source",
        /// `max_pending_handshakes`.
        PendingHandshakes = "pending_handshakes",
        /// `max_header_bytes`, or too many fields: answered 431.
        HeaderBytes = "header_bytes",
        /// An encoded header block too large or in too many frames: its connection ended.
        HeaderBlock = "header_block",
        /// `max_concurrent_streams`.
        Streams = "streams",
        /// Bytes buffered.
        Memory = "memory",
        /// Memory near its limit: an RPC or a connection was refused.
        Overload = "overload",
        /// A client's budget of resets: its connection ended.
        ResetFlood = "reset_flood",
        /// `timeouts.preface`.
        PrefaceTimeout = "preface_timeout",
        /// SETTINGS not acknowledged within `timeouts.preface` of the client's own: its connection ended.
        SettingsTimeout = "settings_timeout",
        /// `timeouts.tls_handshake`.
        HandshakeTimeout = "handshake_timeout",
        /// `timeouts.header_block`.
        HeaderBlockTimeout = "header_block_timeout",
        /// `timeouts.write_stall`.
        WriteStall = "write_stall",
        /// `timeouts.stream_window_stall`.
        WindowStall = "window_stall",
        /// `timeouts.idle`.
        IdleConnection = "idle_connection",
        /// `keepalive.timeout`.
        KeepaliveTimeout = "keepalive_timeout",
        /// `max_connection_age`.
        ConnectionAge = "connection_age",
        /// A cluster's `max_connections`.
        UpstreamConnections = "upstream_connections",
        /// A backend's connection window, used up by what it doesn't read while others wait: the RPC that held most of it
        /// ended.
        UpstreamWindow = "upstream_window",
        /// A client's share of the streams to a backend: one of an RPC ended whose client had more, since others waited.
        StreamShare = "stream_share",
    }
}

labels! {
    /// How an attempt on an endpoint ended.
    AttemptResult {
        /// With `grpc-status: 0`, or a complete plain HTTP response.
        Ok = "ok",
        /// With another grpc-status, or plain HTTP with a status of 500 or above: the backend's own answer.
        ErrorStatus = "error_status",
        /// No connection: refused, unreachable, ended before the SETTINGS.
        ConnectFailed = "connect_failed",
        /// No connection within `connect_timeout`.
        ConnectTimedOut = "connect_timed_out",
        /// Not processed, as the backend says: REFUSED_STREAM, or above the last id of its GOAWAY.
        Refused = "refused",
        /// The backend reset the stream.
        Reset = "reset",
        /// The connection ended under it.
        ConnectionClosed = "connection_closed",
        /// What the backend sent breaks HTTP/2 or gRPC.
        ProtocolError = "protocol_error",
        /// The deadline passed.
        TimedOut = "timed_out",
        /// The client went away, or the proxy ended it.
        Cancelled = "cancelled",
    }
}

labels! {
    /// Why an attempt that would have been safe didn't follow one that failed.
    RetryRefusal {
        /// Backends refused so many attempts that no token is left.
        Budget = "budget",
        /// What was sent of the request's body isn't kept: more than `max_replay_bytes`, or memory is short.
        Body = "body",
    }
}

labels! {
    /// What the access log says about how an RPC went wrong: Envoy's short response flags.
    Flag {
        /// No route matches.
        NoRoute = "NR",
        /// The cluster has no endpoint to choose.
        NoHealthyUpstream = "UH",
        /// No connection to an endpoint, or no room on those that there are, within `connect_timeout`.
        UpstreamConnectFailure = "UF",
        /// The upstream connection ended under the RPC.
        UpstreamConnectionTermination = "UC",
        /// The backend reset the stream.
        UpstreamReset = "UR",
        /// The deadline of the client or of the route passed.
        UpstreamTimeout = "UT",
        /// What the backend sent breaks HTTP/2 or HTTP.
        UpstreamProtocolError = "UPE",
        /// A circuit limit of the cluster.
        UpstreamOverflow = "UO",
        /// Every attempt that is allowed was made.
        UpstreamRetryLimit = "URX",
        /// The client's connection ended under the RPC.
        DownstreamTermination = "DC",
        /// The client reset the stream.
        DownstreamReset = "DR",
        /// What the client sent breaks HTTP/2 or HTTP, or isn't taken here: headers above the limit, CONNECT, gRPC over
        /// HTTP/1.1.
        DownstreamProtocolError = "DPE",
        /// The proxy reset the stream: its drain deadline, `max_connection_age_grace`, a client's window that stayed shut, an
        /// error of its own.
        LocalReset = "LR",
        /// Nothing moved for `stream_idle`.
        StreamIdle = "SI",
        /// `host` differs from `:authority`, isn't there (HTTP/1.1), or is double or no host.
        InvalidHost = "IH",
        /// The proxy is short of memory, or the client has a stream too many, or more than its share of those to a backend
        /// while others wait.
        Overload = "OM",
    }
}

/// A set of [`Flag`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u32);

impl Flags {
    /// None.
    pub const NONE: Self = Self(0);

    /// Adds `flag`.
    pub fn insert(&mut self, flag: Flag) {
        self.0 |= 1 << flag.index();
    }

    /// With `flag`.
    #[must_use]
    pub fn with(mut self, flag: Flag) -> Self {
        self.insert(flag);
        self
    }

    /// Whether `flag` is in it.
    pub fn contains(self, flag: Flag) -> bool {
        self.0 & (1 << flag.index()) != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Each of them, in the order of [`Flag`].
    #[inline]
    pub fn iter(self) -> impl Iterator<Item = Flag> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            // Of none the number is 32, which no flag has.
            let lowest = rest.trailing_zeros() as usize;
            rest &= rest.wrapping_sub(1);
            Flag::ALL.get(lowest).copied()
        })
    }
}

impl From<Flag> for Flags {
    fn from(flag: Flag) -> Self {
        Self::NONE.with(flag)
    }
}

/// Every flag has a bit.
const _: () = assert!(Flag::COUNT <= u32::BITS as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_found_at_its_index() {
        for (i, flag) in Flag::ALL.iter().enumerate() {
            assert_eq!(flag.index(), i);
        }
        assert_eq!(Flag::ALL.len(), Flag::COUNT);
        assert_eq!(Limit::ALL.len(), Limit::COUNT);
    }

    #[test]
    fn flags_are_a_set() {
        let flags = Flags::from(Flag::UpstreamReset)
            .with(Flag::NoRoute)
            .with(Flag::NoRoute);
        assert!(!flags.is_empty() && Flags::NONE.is_empty());
        assert!(flags.contains(Flag::NoRoute) && !flags.contains(Flag::StreamIdle));
        let texts: Vec<_> = flags.iter().map(Label::as_str).collect();
        assert_eq!(texts, ["NR", "UR"]);
        assert_eq!(Flags::NONE.iter().next(), None);
        let all = Flag::ALL.iter().copied().fold(Flags::NONE, Flags::with);
        assert!(all.iter().eq(Flag::ALL.iter().copied()));
    }
}
