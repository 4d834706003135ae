//! Our side's settings and limits, and what the peer announced (RFC 9113 §6.5).

use crate::{
    connection::Role,
    error::{ConnectionError, Reason},
    flow::DEFAULT_WINDOW,
    frame::{DEFAULT_MAX_FRAME, MAX_ID, u32_at},
};

/// What this end announces and enforces. One value per listener or cluster, cheap to copy.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// SETTINGS_MAX_CONCURRENT_STREAMS that we announce (server role).
    pub max_concurrent_streams: u32,
    /// SETTINGS_INITIAL_WINDOW_SIZE that we announce: bytes the peer may send per stream before credit.
    pub stream_window: u32,
    /// The connection's receive window, in bytes (raised above 65 535 by a WINDOW_UPDATE at the start).
    pub connection_window: u32,
    /// A header list (RFC 9113 §6.5.2 size) above this is not delivered as [`Event::Headers`](crate::Event),
    /// but as `HeadersTooLarge`, so that the owner answers 431. Announced as SETTINGS_MAX_HEADER_LIST_SIZE.
    pub max_header_list: u32,
    /// Server role: a request of more fields than this, pseudo-header fields included and trailers added to those of the head, is
    /// as one above `max_header_list`. No setting tells the peer.
    pub max_header_fields: u32,
    /// A decoded list above this ends the stream (ENHANCE_YOUR_CALM), undelivered. One above four times this (64 times in
    /// the client role) isn't decoded to its end: it ends the connection, likewise (RFC 9113 §10.5.1, RFC 7541 §7.3).
    pub max_header_list_hard: u32,
    /// Server role: an encoded block above this many bytes ends the connection. Client role: it ends its stream
    /// (ENHANCE_YOUR_CALM), as it comes and without being collected, since one request may have asked for it and many
    /// share the connection; one above 16 times this ends that.
    pub max_header_block: u32,
    /// A block of more frames than this (HEADERS + CONTINUATION) ends the connection.
    pub max_header_frames: u32,
    /// SETTINGS_HEADER_TABLE_SIZE that we announce (our decoder; at least 4096, which peers may use
    /// before they have read our SETTINGS), and the cap of our encoder's table.
    pub header_table: u32,
    /// Data stays queued per stream, in place of being framed, while the output holds this many bytes.
    pub output_limit: usize,
}

impl Default for Config {
    /// What an edge offers its clients: enough for gRPC over slow links, little per idle
    /// connection.
    fn default() -> Self {
        Self {
            max_concurrent_streams: 100,
            stream_window: 64 * 1024,
            connection_window: 1024 * 1024,
            max_header_list: 8 * 1024,
            max_header_fields: u32::MAX,
            max_header_list_hard: 32 * 1024,
            max_header_block: 32 * 1024,
            max_header_frames: 6,
            header_table: 4096,
            output_limit: 256 * 1024,
        }
    }
}

impl Config {
    /// The settings frame that opens the connection, and the bytes to raise the connection's
    /// window by. SETTINGS_MAX_FRAME_SIZE stays at its initial value: larger frames only let one
    /// stream keep the others waiting longer.
    pub(crate) fn announced(&self, role: Role) -> ([(u16, u32); 4], u32) {
        // Each role has one setting of its own; a client takes no push (RFC 9113 §8.4).
        let own = match role {
            Role::Server => (id::MAX_CONCURRENT_STREAMS, self.max_concurrent_streams),
            Role::Client => (id::ENABLE_PUSH, 0),
        };
        let settings = [
            (id::HEADER_TABLE_SIZE, self.decoder_table()),
            own,
            (id::INITIAL_WINDOW_SIZE, self.stream_window.min(MAX_ID)),
            (id::MAX_HEADER_LIST_SIZE, self.max_header_list),
        ];
        (settings, self.receive_window() - DEFAULT_WINDOW)
    }

    /// The size of our decoder's table.
    pub(crate) fn decoder_table(&self) -> u32 {
        self.header_table.max(DEFAULT_HEADER_TABLE)
    }

    /// The list at which our decoder stops. Room for an honest peer that reads no SETTINGS; a peer that passes it has
    /// entries of its table named again and again. A server may be honest and say what a request makes it say.
    pub(crate) fn header_list_ceiling(&self, role: Role) -> u32 {
        self.max_header_list_hard.saturating_mul(match role {
            Role::Server => 4,
            Role::Client => 64,
        })
    }

    /// Bytes of an encoded block that end the connection.
    pub(crate) fn header_block_ceiling(&self, role: Role) -> u32 {
        match role {
            Role::Server => self.max_header_block,
            Role::Client => self.max_header_block.saturating_mul(16),
        }
    }

    /// The connection's receive window: it can't be below 65 535 bytes, since nothing takes
    /// initial credit back (RFC 9113 §6.9.2).
    pub(crate) fn receive_window(&self) -> u32 {
        self.connection_window.clamp(DEFAULT_WINDOW, MAX_ID)
    }

    /// Bytes by which a stream may pass our window until the peer has acknowledged our SETTINGS
    /// (RFC 9113 §6.9.3).
    pub(crate) fn unacknowledged_slack(&self) -> u32 {
        DEFAULT_WINDOW.saturating_sub(self.stream_window)
    }
}

/// What the peer announced and we keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) header_table: u32,
    pub(crate) max_concurrent_streams: u32,
    pub(crate) initial_window: u32,
    pub(crate) max_frame: usize,
}

impl Default for Peer {
    /// The initial values of RFC 9113 §6.5.2.
    fn default() -> Self {
        Self {
            header_table: DEFAULT_HEADER_TABLE,
            max_concurrent_streams: u32::MAX,
            initial_window: DEFAULT_WINDOW,
            max_frame: DEFAULT_MAX_FRAME,
        }
    }
}

impl Peer {
    /// Applies a SETTINGS payload (its length is a multiple of six), values in order.
    /// `role` is ours. Returns the smallest SETTINGS_HEADER_TABLE_SIZE in it.
    pub(crate) fn apply(
        &mut self,
        payload: &[u8],
        role: Role,
    ) -> Result<Option<u32>, ConnectionError> {
        let mut smallest = None;
        for entry in payload.chunks_exact(6) {
            let value = u32_at(entry, 2);
            match u16::from_be_bytes([entry[0], entry[1]]) {
                id::HEADER_TABLE_SIZE => {
                    self.header_table = value;
                    smallest = Some(smallest.map_or(value, |before: u32| before.min(value)));
                }
                // A server may only say 0, and a client nothing above 1.
                id::ENABLE_PUSH if value > u32::from(role == Role::Server) => {
                    return Err(broken(
                        Reason::PROTOCOL_ERROR,
                        "SETTINGS_ENABLE_PUSH (RFC 9113 §6.5.2)",
                    ));
                }
                id::MAX_CONCURRENT_STREAMS => self.max_concurrent_streams = value,
                id::INITIAL_WINDOW_SIZE => {
                    if value > MAX_ID {
                        return Err(broken(
                            Reason::FLOW_CONTROL_ERROR,
                            "SETTINGS_INITIAL_WINDOW_SIZE above 2^31-1 (RFC 9113 §6.5.2)",
                        ));
                    }
                    self.initial_window = value;
                }
                id::MAX_FRAME_SIZE => {
                    if !(DEFAULT_MAX_FRAME as u32..=MAX_FRAME_SIZE).contains(&value) {
                        return Err(broken(
                            Reason::PROTOCOL_ERROR,
                            "SETTINGS_MAX_FRAME_SIZE out of range (RFC 9113 §6.5.2)",
                        ));
                    }
                    self.max_frame = value as usize;
                }
                // MAX_HEADER_LIST_SIZE is advice; unknown settings are ignored (RFC 9113 §6.5.2).
                _ => {}
            }
        }
        Ok(smallest)
    }
}

fn broken(reason: Reason, rule: &'static str) -> ConnectionError {
    ConnectionError {
        reason,
        rule,
        limit: None,
    }
}

/// Setting identifiers, RFC 9113 §6.5.2.
pub(crate) mod id {
    pub(crate) const HEADER_TABLE_SIZE: u16 = 0x1;
    pub(crate) const ENABLE_PUSH: u16 = 0x2;
    pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 0x3;
    pub(crate) const INITIAL_WINDOW_SIZE: u16 = 0x4;
    pub(crate) const MAX_FRAME_SIZE: u16 = 0x5;
    pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 0x6;
}

/// The initial SETTINGS_HEADER_TABLE_SIZE (RFC 9113 §6.5.2).
const DEFAULT_HEADER_TABLE: u32 = 4096;

/// The largest SETTINGS_MAX_FRAME_SIZE (RFC 9113 §6.5.2).
const MAX_FRAME_SIZE: u32 = 0xff_ffff;

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(settings: &[(u16, u32)]) -> Vec<u8> {
        settings
            .iter()
            .flat_map(|(id, v)| [&id.to_be_bytes()[..], &v.to_be_bytes()[..]].concat())
            .collect()
    }

    #[test]
    fn values_apply_in_order_and_unknown_ones_are_ignored() {
        let mut peer = Peer::default();
        let p = payload(&[
            (4, 1),
            (4, 2),
            (3, 7),
            (1, 0),
            (5, 20_000),
            (6, 9),
            (0x99, 1),
        ]);
        peer.apply(&p, Role::Client).unwrap();
        assert_eq!(
            peer,
            Peer {
                header_table: 0,
                max_concurrent_streams: 7,
                initial_window: 2,
                max_frame: 20_000
            }
        );
    }

    #[test]
    fn values_out_of_range_are_refused_with_their_code() {
        for (role, id, value, reason) in [
            (Role::Server, 2, 2, Reason::PROTOCOL_ERROR),
            (Role::Client, 2, 1, Reason::PROTOCOL_ERROR),
            (Role::Server, 4, 0x8000_0000, Reason::FLOW_CONTROL_ERROR),
            (Role::Server, 5, 16_383, Reason::PROTOCOL_ERROR),
            (Role::Server, 5, 0x100_0000, Reason::PROTOCOL_ERROR),
        ] {
            let e = Peer::default()
                .apply(&payload(&[(id, value)]), role)
                .unwrap_err();
            assert_eq!(e.reason, reason, "{id} = {value}");
        }
        Peer::default()
            .apply(&payload(&[(2, 1)]), Role::Server)
            .unwrap();
    }
}
