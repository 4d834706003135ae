//! Text to [`File`]: runs the YAML library within bounds and puts its errors into the operator's words.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_saphyr::{DuplicateKeyPolicy, Error};

use super::{
    Config,
    file::File,
    place::{Outline, Place},
    problem::{ConfigErrors, Problem, did_you_mean},
};

/// Reads the YAML. The first mistake of syntax, unknown key or value of the wrong kind ends it: what follows such a
/// mistake is guesswork.
pub(super) fn read(text: &str, file: &Path) -> Result<(File, Outline), ConfigErrors> {
    let explain = |error: &Error, outline: Option<&Outline>| {
        ConfigErrors::one(explain(error, outline, text, file))
    };
    if text
        .lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
    {
        let message = "holds nothing but comments: write at least listener, routes and clusters";
        return Err(ConfigErrors::one(Problem::of_file(file, message)));
    }
    // The outline takes any YAML, so what fails here is the syntax, and it is told as such.
    let outline = parse::<Outline>(text, DuplicateKeyPolicy::PassThrough)
        .map_err(|error| explain(&error, None))?;
    let typed = parse::<File>(text, DuplicateKeyPolicy::Error)
        .map_err(|error| explain(&error, Some(&outline)))?;
    Ok((typed, outline))
}

/// The bounds are far above any real file, so that a wrong one (or a fuzzer's) costs neither stack nor memory.
fn parse<T: DeserializeOwned>(text: &str, duplicate_keys: DuplicateKeyPolicy) -> Result<T, Error> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        duplicate_keys: duplicate_keys,
        budget: serde_saphyr::budget! {
            max_depth: 32,
            max_nodes: 200_000,
            max_events: 1_000_000,
        },
    };
    serde_saphyr::from_str_with_options(text, options)
}

fn explain(error: &Error, outline: Option<&Outline>, text: &str, file: &Path) -> Problem {
    let error = error.without_snippet();
    let place = error
        .location()
        .map(Place::from)
        .filter(|place| place.line > 0);
    let found = || match place.map(|place| quote(text, place)).unwrap_or_default() {
        empty if empty.is_empty() => "nothing".to_owned(),
        value => format!("`{value}`"),
    };
    // The key that the message is about, when the place isn't that of a value.
    let mut key = None;
    let mut below = None;
    let message = match error {
        Error::SerdeUnknownField { field, expected, .. } => {
            key = Some(field.as_str());
            unknown_key(field, expected)
        }
        Error::DuplicateMappingKey { key: name, .. } => {
            key = name.as_deref();
            "this key is written twice: keep one of them".to_owned()
        }
        Error::SerdeMissingField { field, .. } => {
            below = Some(*field);
            format!("is missing: {}", example(field))
        }
        Error::SerdeUnknownVariant { variant, expected, .. } => format!(
            "`{variant}` isn't known here: {}write {}",
            did_you_mean(variant, expected.iter().copied()),
            expected.join(" or ")
        ),
        Error::InvalidScalar { ty: "boolean", .. } => {
            format!("{} isn't true or false: write one of them", found())
        }
        Error::InvalidScalar { .. } if is_whole_number(&found()) => {
            format!("{} is larger than any number here: write a smaller one", found())
        }
        Error::InvalidScalar { .. } => {
            format!("{} isn't a whole number from 0: write digits only, as 100", found())
        }
        Error::Unexpected { expected, .. } if expected.contains("mapping") => format!(
            "{} stands where a mapping belongs: write `key: value` lines, or `{{}}` for none",
            found()
        ),
        Error::Unexpected { expected, .. } if expected.contains("sequence") => format!(
            "{} stands where a list belongs: write a line with `- ` for each item",
            found()
        ),
        Error::Unexpected { expected, .. } if expected.contains("scalar") => {
            "a mapping or a list stands where one value belongs: write it after the key, on its line"
                .to_owned()
        }
        Error::NullIntoString { .. } => {
            "has no value: write one after the key, or leave the key out".to_owned()
        }
        Error::MultipleDocuments { .. } => {
            "a second document begins here: a file holds one configuration, take the `---` line out"
                .to_owned()
        }
        Error::Budget { .. } => {
            "the file is larger or deeper than any configuration: is it the right one?".to_owned()
        }
        other => format!("not YAML: {}", without_place(other)),
    };
    let mut path = match (outline, place, key) {
        (Some(outline), Some(place), Some(key)) => outline.path_of_key(place, key),
        (Some(outline), Some(place), None) => outline.path(place),
        (_, _, Some(key)) => key.to_owned(),
        _ => String::new(),
    };
    if let Some(field) = below {
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(field);
    }
    Problem {
        file: file.to_owned(),
        place,
        path,
        message,
    }
}

fn unknown_key(written: &str, known: &[&str]) -> String {
    let near = match did_you_mean(written, known.iter().copied()) {
        // Most often an indentation too much or too little.
        none if none.is_empty() => known_elsewhere(written),
        near => near,
    };
    format!("unknown key: {near}known here: {}", known.join(", "))
}

/// ` Did you mean ...?` for a key that is known, in another mapping.
fn known_elsewhere(written: &str) -> String {
    // It is JSON already, in another type.
    let schema = serde_json::to_value(Config::schema()).unwrap_or_default();
    let mut paths = Vec::new();
    paths_of(written, &schema, &schema, "", &mut paths);
    if paths.is_empty() {
        return String::new();
    }
    format!("did you mean {}? ", paths.join(" or "))
}

/// The places of the key `wanted` in the schema, as code.
fn paths_of(wanted: &str, schema: &Value, node: &Value, path: &str, paths: &mut Vec<String>) {
    if let Some(reference) = node["$ref"].as_str() {
        let target = schema.pointer(reference.trim_start_matches('#'));
        // The schema's own.
        if let Some(target) = target {
            paths_of(wanted, schema, target, path, paths);
        }
        return;
    }
    for node in node["anyOf"].as_array().into_iter().flatten() {
        paths_of(wanted, schema, node, path, paths);
    }
    if let Some(items) = node.get("items") {
        paths_of(wanted, schema, items, &format!("{path}[]"), paths);
    }
    for (key, node) in node["properties"].as_object().into_iter().flatten() {
        let dot = if path.is_empty() { "" } else { "." };
        let path = format!("{path}{dot}{key}");
        if key == wanted {
            paths.push(format!("`{path}`"));
        }
        paths_of(wanted, schema, node, &path, paths);
    }
}

/// What to write for a required key.
fn example(field: &str) -> String {
    match field {
        "listener" => "write `listener:` with `address` and `tls` below it".to_owned(),
        "address" => "write `address: 0.0.0.0:8443`".to_owned(),
        "tls" => "write `tls:` with `certificate_chain` and `private_key` below it".to_owned(),
        "certificate_chain" | "private_key" => {
            format!("write `{field}:` and the path of a PEM file")
        }
        "routes" => "write `routes:` with a list of `prefix` and `cluster`".to_owned(),
        "clusters" => "write `clusters:` with a list of `name` and `endpoints`".to_owned(),
        "prefix" => "write `prefix: /package.Service/`".to_owned(),
        "endpoints" => "write `endpoints: [\"host:port\"]`".to_owned(),
        "status" => "write `status: 200`".to_owned(),
        other => format!("write `{other}:` and its value"),
    }
}

/// What stands at `place`, as far as one value goes.
fn quote(text: &str, place: Place) -> String {
    let index = |number: u64| usize::try_from(number.saturating_sub(1)).unwrap_or(usize::MAX);
    let line = text.lines().nth(index(place.line)).unwrap_or_default();
    let rest: String = line.chars().skip(index(place.column)).collect();
    let end = [" #", ",", "}", "]"]
        .iter()
        .filter_map(|end| rest.find(end))
        .min();
    let value = rest[..end.unwrap_or(rest.len())]
        .trim()
        .trim_start_matches(':');
    value.chars().take(LONGEST_QUOTE).collect()
}

/// Whether a quoted value is nothing but digits, and at least as many as the largest u64 has.
fn is_whole_number(quoted: &str) -> bool {
    let digits = quoted.trim_matches(['`', '"', '\'']);
    digits.len() >= 20 && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// The library ends its texts with the place, which is in front of ours already.
fn without_place(error: &Error) -> String {
    let text = error.render();
    let end = text.rfind(" at line ").unwrap_or(text.len());
    text[..end].to_owned()
}

/// Characters of a wrong value that a message repeats.
const LONGEST_QUOTE: usize = 40;
