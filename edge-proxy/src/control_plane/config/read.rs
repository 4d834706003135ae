//! Text to [`File`]: runs the YAML library within bounds and puts its errors into the operator's words.

use std::{net::Ipv6Addr, path::Path};

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_saphyr::{DuplicateKeyPolicy, Error};

use super::{
    Config,
    file::File,
    place::{Outline, Place},
    problem::{ConfigErrors, Problem, Shown, did_you_mean},
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
            max_total_scalar_bytes: 16 << 20,
            max_recorded_anchor_bytes: 16 << 20,
            // Hundreds of clusters may share one health check.
            enforce_alias_anchor_ratio: false,
        },
        // What aliases may add. Ten of each other's ten times over is a thousand million.
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 20_000,
            max_replay_stack_depth: 16,
        },
    };
    serde_saphyr::from_str_with_options(text, options)
}

fn explain(error: &Error, outline: Option<&Outline>, text: &str, file: &Path) -> Problem {
    let mut error = error.without_snippet();
    let place = error
        .location()
        .map(Place::from)
        .filter(|place| place.line > 0);
    // Told where the alias is, and for what it stands for.
    while let Error::AliasError { error: inner, .. } = error {
        error = inner;
    }
    let (message, about) = if place.is_some_and(|place| has_bare_ipv6(line_at(text, place))) {
        (BARE_IPV6.to_owned(), About::Value)
    } else {
        (in_words(error, text, place), About::of(error))
    };
    let mut path = match (outline, place, &about) {
        (Some(outline), Some(place), About::Key(key)) => outline.path_of_key(place, key),
        (Some(outline), Some(place), _) => outline.path(place),
        (_, _, About::Key(key)) => Shown(key).to_string(),
        _ => String::new(),
    };
    if let About::Missing(field) = about {
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

/// What a mistake is about, beside its place.
enum About<'a> {
    /// The value that stands there.
    Value,
    /// This key.
    Key(&'a str),
    /// This key, which should stand there.
    Missing(&'a str),
}

impl<'a> About<'a> {
    fn of(error: &'a Error) -> Self {
        match error {
            Error::SerdeUnknownField { field, .. } => Self::Key(field),
            Error::DuplicateMappingKey { key: Some(key), .. } => Self::Key(key),
            Error::SerdeMissingField { field, .. } => Self::Missing(field),
            _ => Self::Value,
        }
    }
}

/// What is wrong, and what to write instead.
fn in_words(error: &Error, text: &str, place: Option<Place>) -> String {
    let found = || match place.map(|place| quote(text, place)).unwrap_or_default() {
        empty if empty.is_empty() => "nothing".to_owned(),
        value => format!("`{}`", Shown(&value)),
    };
    match error {
        Error::SerdeUnknownField { field, expected, .. } => unknown_key(field, expected),
        Error::DuplicateMappingKey { .. } => {
            "this key is written twice: keep one of them".to_owned()
        }
        Error::SerdeMissingField { field, .. } => format!("is missing: {}", example(field)),
        Error::SerdeUnknownVariant { variant, expected, .. } => format!(
            "`{}` isn't known here: {}write {}",
            Shown(variant),
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
        Error::Budget { .. } => TOO_LARGE.to_owned(),
        Error::AliasReplayLimitExceeded { .. } | Error::AliasReplayStackDepthExceeded { .. } => {
            "this alias and those before it repeat more than any configuration needs: write out what they stand for"
                .to_owned()
        }
        Error::RecursiveReferencesRequireWeakTypes { .. } => {
            "this alias stands within what it stands for: write that out".to_owned()
        }
        other if without_place(other) == TOO_DEEP => TOO_LARGE.to_owned(),
        other => {
            let words = without_place(other);
            let remedy = remedy(&words, text, place);
            format!("not YAML: {words}{remedy}")
        }
    }
}

/// What to do about a mistake of syntax of which the parser says `words`.
fn remedy(words: &str, text: &str, place: Option<Place>) -> String {
    let place = place.filter(|_| OF_STRUCTURE.iter().any(|part| words.contains(part)));
    let known = || {
        let remedy = REMEDIES.iter().find(|(part, _)| words.contains(part));
        remedy.map_or_else(String::new, |(_, remedy)| (*remedy).to_owned())
    };
    match place.and_then(|place| opened(words, text, place)) {
        Some(('[', at)) => {
            format!(
                ": the `[` of {at} is still open here: close it with `]`, or write `,` between its items"
            )
        }
        Some(('{', at)) => {
            format!(
                ": the `{{` of {at} is still open here: close it with `}}`, or write `,` between its keys"
            )
        }
        Some((quote, at)) if ended(words) => {
            format!(
                ": the value in quotes that begins at {at} ends only here: write {quote} where it is to end"
            )
        }
        Some((quote, at)) => {
            format!(
                ": the value in quotes that begins at {at} is still open here: write {quote} where it is to end"
            )
        }
        None => known(),
    }
}

/// The bracket or quote within which the mistake at `place` stands, and where that was opened. It is the parser that says
/// so, of the text up to there.
fn opened(words: &str, text: &str, place: Place) -> Option<(char, Place)> {
    let ended = ended(words);
    let mut end = offset(text, place)?;
    if ended {
        end = text[..end].rfind(['"', '\''])?;
    }
    let cut = parse::<Outline>(&text[..end], DuplicateKeyPolicy::PassThrough).err()?;
    let cut = cut.without_snippet();
    let at = cut.location().map(Place::from)?;
    let open = text[offset(text, at)?..].chars().next()?;
    let said = without_place(cut);
    let is_open = match open {
        '[' | '{' => !ended && said.contains("unclosed bracket"),
        '"' | '\'' => said.contains("unclosed quote"),
        _ => false,
    };
    // Both quotes in one line are plain to see.
    let elsewhere = !ended || at.line < place.line;
    (is_open && elsewhere).then_some((open, at))
}

/// Whether the mistake is what stands behind the end of a value in quotes.
fn ended(words: &str) -> bool {
    words.contains("trailing content after")
}

/// Where `place` is in the text.
fn offset(text: &str, place: Place) -> Option<usize> {
    let mut lines = text.split_inclusive('\n');
    let before: usize = lines.by_ref().take(index(place.line)).map(str::len).sum();
    let line = lines.next().unwrap_or_default();
    let mut columns = line.char_indices().map(|(at, _)| at).chain([line.len()]);
    Some(before + columns.nth(index(place.column))?)
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

/// Whether a value begins with an IPv6 address in brackets and has no quotes.
fn has_bare_ipv6(line: &str) -> bool {
    let line = line.split(" #").next().unwrap_or_default();
    line.match_indices('[').any(|(at, _)| {
        let inner = &line[at + 1..];
        // Up to the next bracket at most, so that each character is looked at once.
        let end = inner.find(|c: char| !c.is_ascii_hexdigit() && c != ':');
        let (address, rest) = inner.split_at(end.unwrap_or(inner.len()));
        !line[..at].ends_with(['"', '\''])
            && rest.starts_with("]:")
            && address.parse::<Ipv6Addr>().is_ok()
    })
}

fn line_at(text: &str, place: Place) -> &str {
    text.lines().nth(index(place.line)).unwrap_or_default()
}

fn index(number: u64) -> usize {
    usize::try_from(number.saturating_sub(1)).unwrap_or(usize::MAX)
}

/// What stands at `place`, as far as one value goes.
fn quote(text: &str, place: Place) -> String {
    let line = line_at(text, place);
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

const BARE_IPV6: &str =
    "an IPv6 address in brackets looks like a list here: put quotes around it, as \"[::1]:8443\"";

const TOO_LARGE: &str = "the file is larger or deeper than any configuration: is it the right one?";

/// The parser's word when its own limit is reached before ours is.
const TOO_DEEP: &str = "recursion limit exceeded";

/// What the parser says where something stands that can't stand there: it may be for a bracket or a quote that isn't
/// closed.
const OF_STRUCTURE: [&str; 11] = [
    "',' or",
    "':' indicator",
    "trailing content after",
    "invalid indentation in",
    "mapping values are not allowed",
    "mapping keys are not allowed",
    "did not find expected key",
    "did not find expected '-'",
    "block sequence entries are not allowed",
    "only valid inside a block",
    "unexpected EOF",
];

/// What to do, by what the parser says. It knows where it gave up, not what was meant.
const REMEDIES: [(&str, &str); 17] = [
    ("mismatched bracket '['", ": close this one with `]` first"),
    ("mismatched bracket '{'", ": close this one with `}` first"),
    ("unclosed bracket '['", ": close it with `]`"),
    ("unclosed bracket '{'", ": close it with `}`"),
    ("unclosed quote", ": close it with another one"),
    (
        "unknown escape character",
        ": write `\\\\` for each `\\` in these quotes",
    ),
    (
        "unexpected document indicator",
        ": close it before the line that begins with `---` or `...`",
    ),
    (
        "after single-quoted scalar",
        ": put it within the quotes (write '' for a ' there) or take it out; between values in brackets write `,`",
    ),
    (
        "after double-quoted scalar",
        ": put it within the quotes (write \\\" for a \" there) or take it out; between values in brackets write `,`",
    ),
    ("tabs disallowed", ": indent with spaces"),
    ("mapping values are not allowed", INDENTATION),
    ("did not find expected key", INDENTATION),
    ("did not find expected '-'", INDENTATION),
    // One that can't be seen.
    ("unexpected character: `\\u", ": take it out"),
    ("unexpected character", QUOTES),
    ("while scanning an anchor or alias", QUOTES),
    (
        "unknown anchor",
        ": write `&` and this name before a value above, or put quotes around it if none is meant",
    ),
];
const INDENTATION: &str =
    ": look at the indentation here and in the line above, and for a space behind each `:` and `-`";
const QUOTES: &str = ": put quotes around the value";

/// Characters of a wrong value that a message repeats.
const LONGEST_QUOTE: usize = 40;
