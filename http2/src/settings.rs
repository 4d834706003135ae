//! Our side's settings and limits, and what the peer announced (RFC 9113 §6.5).

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
    /// A decoded list above this ends the stream (ENHANCE_YOUR_CALM), undelivered.
    pub max_header_list_hard: u32,
    /// An encoded block above this many bytes ends the connection.
    pub max_header_block: u32,
    /// A block of more frames than this (HEADERS + CONTINUATION) ends the connection.
    pub max_header_frames: u32,
    /// SETTINGS_HEADER_TABLE_SIZE that we announce (our decoder), and the cap of our encoder's table.
    pub header_table: u32,
    /// Data stays queued per stream, in place of being framed, while the output holds this many bytes.
    pub output_limit: usize,
}
