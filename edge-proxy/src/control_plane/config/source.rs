//! The file's bytes as text: no more of them than a configuration has, in UTF-8. What isn't that is told by what it is.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use super::{ConfigErrors, Place, Problem};
use crate::control_plane::encoding::{in_utf16, is_utf16};

/// Reads the file at `path`.
pub(super) fn read(path: &Path) -> Result<String, ConfigErrors> {
    let mut bytes = Vec::new();
    let whole = File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes));
    let problem = match whole {
        Ok(_) => match text(bytes) {
            Ok(text) => return Ok(text),
            Err((place, message)) => Problem {
                file: path.to_owned(),
                place,
                path: String::new(),
                message,
            },
        },
        Err(error) => {
            let advice = match error.kind() {
                io::ErrorKind::PermissionDenied => "let this user read it and pass its folders",
                io::ErrorKind::IsADirectory => "give the path of the YAML file in it",
                _ => "give the path of the YAML file",
            };
            let message = format!("can't be read ({error}): {advice}");
            Problem::of_file(path, message)
        }
    };
    Err(ConfigErrors::one(problem))
}

/// The text, or where it isn't one and what to do.
fn text(bytes: Vec<u8>) -> Result<String, (Option<Place>, String)> {
    if bytes.len() as u64 > LARGEST {
        let message = "is larger than 16 MiB, as no configuration is: is it the right file?";
        return Err((None, message.to_owned()));
    }
    if is_utf16(&bytes) {
        return Err((None, in_utf16("UTF-8", "utf8")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let bytes = error.as_bytes();
        let good = String::from_utf8_lossy(&bytes[..error.utf8_error().valid_up_to()]);
        let line = good.rsplit('\n').next().unwrap_or_default();
        let place = Place {
            line: good.matches('\n').count() as u64 + 1,
            column: line.chars().count() as u64 + 1,
        };
        let message =
            "isn't text in UTF-8 from here on: save it as UTF-8, or give the path of the YAML file";
        (Some(place), message.to_owned())
    })
}

/// Kubernetes gives a ConfigMap 1 MiB; a thousand clusters with every key that there is are less than 2.
const LARGEST: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    /// Where, and what is said.
    fn told(bytes: &[u8]) -> (Option<Place>, String) {
        text(bytes.to_owned()).unwrap_err()
    }

    #[test]
    fn utf_16_is_told_by_its_name_with_and_without_a_mark() {
        let units = || "listener: {}\n".encode_utf16();
        let little: Vec<u8> = units().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = units().flat_map(u16::to_be_bytes).collect();
        for (mark, bytes) in [([0xff, 0xfe], little), ([0xfe, 0xff], big)] {
            for bytes in [[&mark[..], &bytes].concat(), bytes] {
                let (place, message) = told(&bytes);
                assert_eq!(place, None);
                assert!(
                    message.starts_with("is in UTF-16: save it as UTF-8"),
                    "{message}"
                );
            }
        }
    }

    #[test]
    fn what_is_in_another_encoding_is_told_with_its_place() {
        let (place, message) = told(b"a: 1\n# gr\xc3\xbc\xfce\n");
        assert_eq!(place, Some(Place { line: 2, column: 6 }));
        assert!(message.contains("save it as UTF-8"), "{message}");
    }

    #[test]
    fn utf_8_is_text_with_and_without_a_mark() {
        for bytes in ["", "a", "\u{feff}a: 1\n", "a: grüße\n", "\0\0"] {
            assert_eq!(text(bytes.into()), Ok(bytes.to_owned()));
        }
    }

    #[test]
    fn a_folder_is_told_as_one() {
        let error = read(Path::new("/")).unwrap_err().to_string();
        assert!(
            error.ends_with(": give the path of the YAML file in it"),
            "{error}"
        );
    }

    #[test]
    fn no_more_is_read_than_a_configuration_can_be() {
        let (_, message) = told(&vec![b'#'; LARGEST as usize + 1]);
        assert!(message.contains("is it the right file?"), "{message}");
        // A file without an end.
        let error = read(Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(
            error.starts_with("error: /dev/zero: is larger than 16 MiB"),
            "{error}"
        );
    }
}
