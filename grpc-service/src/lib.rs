//! What every tonic service here shares.
