//! What editors on Windows make of a text: UTF-16, which nothing here reads, and so is told by its name.

/// By its byte order mark, or by its first character: that is ASCII in what is read here, so in UTF-16 one of its two
/// bytes is 0.
pub(super) fn is_utf16(bytes: &[u8]) -> bool {
    match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => true,
        [first, second, ..] => (*first == 0) != (*second == 0),
        _ => false,
    }
}

/// What to say of it where `encoding` is wanted, which PowerShell calls `cmdlets`.
pub(super) fn in_utf16(encoding: &str, cmdlets: &str) -> String {
    format!(
        "is in UTF-16: save it as {encoding} (in PowerShell by `Set-Content -Encoding {cmdlets}`, in editors by \"Save as\")"
    )
}
