//! What can go wrong on a connection, in the codes of RFC 9113 §7.

/// An error code of RFC 9113 §7, as RST_STREAM and GOAWAY carry it. Unknown codes are kept as they came.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reason(pub u32);

impl Reason {
    /// Graceful: nothing was wrong.
    pub const NO_ERROR: Self = Self(0x0);
    /// A rule without a code of its own was broken.
    pub const PROTOCOL_ERROR: Self = Self(0x1);
    /// A fault of the sender's own.
    pub const INTERNAL_ERROR: Self = Self(0x2);
    /// A window was passed.
    pub const FLOW_CONTROL_ERROR: Self = Self(0x3);
    /// SETTINGS were not acknowledged in time.
    pub const SETTINGS_TIMEOUT: Self = Self(0x4);
    /// A frame for a stream that its sender had ended.
    pub const STREAM_CLOSED: Self = Self(0x5);
    /// A frame of a wrong length.
    pub const FRAME_SIZE_ERROR: Self = Self(0x6);
    /// Nothing of the stream was processed.
    pub const REFUSED_STREAM: Self = Self(0x7);
    /// The stream isn't wanted any more.
    pub const CANCEL: Self = Self(0x8);
    /// A header block can't be decoded.
    pub const COMPRESSION_ERROR: Self = Self(0x9);
    /// The connection of a CONNECT request ended.
    pub const CONNECT_ERROR: Self = Self(0xa);
    /// The peer causes too much load.
    pub const ENHANCE_YOUR_CALM: Self = Self(0xb);
    /// The transport is not secure enough.
    pub const INADEQUATE_SECURITY: Self = Self(0xc);
    /// Use HTTP/1.1 instead.
    pub const HTTP_1_1_REQUIRED: Self = Self(0xd);
}

impl std::fmt::Display for Reason {
    /// The code's name, or its number if it has none.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match *self {
            Self::NO_ERROR => "NO_ERROR",
            Self::PROTOCOL_ERROR => "PROTOCOL_ERROR",
            Self::INTERNAL_ERROR => "INTERNAL_ERROR",
            Self::FLOW_CONTROL_ERROR => "FLOW_CONTROL_ERROR",
            Self::SETTINGS_TIMEOUT => "SETTINGS_TIMEOUT",
            Self::STREAM_CLOSED => "STREAM_CLOSED",
            Self::FRAME_SIZE_ERROR => "FRAME_SIZE_ERROR",
            Self::REFUSED_STREAM => "REFUSED_STREAM",
            Self::CANCEL => "CANCEL",
            Self::COMPRESSION_ERROR => "COMPRESSION_ERROR",
            Self::CONNECT_ERROR => "CONNECT_ERROR",
            Self::ENHANCE_YOUR_CALM => "ENHANCE_YOUR_CALM",
            Self::INADEQUATE_SECURITY => "INADEQUATE_SECURITY",
            Self::HTTP_1_1_REQUIRED => "HTTP_1_1_REQUIRED",
            Self(unknown) => return write!(f, "{unknown:#x}"),
        })
    }
}

impl std::fmt::Debug for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reason({:#x})", self.0)
    }
}

/// Ends the connection: a GOAWAY with `reason` is already in the output; write that, then close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {rule}")]
pub struct ConnectionError {
    /// The code that the GOAWAY carries.
    pub reason: Reason,
    /// The rule that the peer broke, with its RFC section, for logs (a fixed set of texts).
    pub rule: &'static str,
    /// The limit that acted, if it was one of ours and not a rule of the protocol; for counters.
    pub limit: Option<Limit>,
}

/// What ENHANCE_YOUR_CALM can end a connection for (RFC 9113 §10.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `max_header_block` or `max_header_frames`, or a list of more than four times `max_header_list_hard`.
    HeaderBlock,
    /// Of the streams that were opened within a second, too large a share was reset before it was answered.
    RapidReset,
    /// Frames that cost and bring nothing.
    Flood,
}
