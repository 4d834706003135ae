use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use edge_proxy::{
    control_plane::{
        admin::scrape::HEALTH,
        config::Config,
        status::{CheckResult, Detected, LookupResult},
    },
    telemetry::{
        families::FAMILIES,
        labels::{
            AttemptResult, Flag, HandshakeResult, Label, Limit, ResetCause, RetryRefusal, Side,
        },
    },
};
use serde_json::Value;

#[test]
fn the_configurations_table_has_every_key_and_no_other() {
    let known: BTreeSet<String> = schema_keys().into_keys().collect();
    // Mappings that have no row of their own: their keys' rows say all.
    let told = rows("## Configuration").into_keys().collect();
    let parents = parents(&told);
    let without_a_row: Vec<_> = known
        .difference(&told)
        .filter(|key| !parents.contains(*key))
        .collect();
    assert!(
        without_a_row.is_empty(),
        "keys without a row: {without_a_row:?}"
    );
    let without_a_key: Vec<_> = told.difference(&known).collect();
    assert!(
        without_a_key.is_empty(),
        "rows without a key: {without_a_key:?}"
    );
}

/// What an editor shows and what the README says are one text; `config_dump.rs` compares the defaults in it with those in force.
#[test]
fn the_configurations_table_says_what_the_schema_does() {
    let known = schema_keys();
    for (key, row) in rows("## Configuration") {
        let (default, meaning) = (row[2].replace('`', ""), row[3].replace('`', ""));
        let description = known[&key].replace('`', "");
        let (schema_meaning, schema_default) = description
            .split_once(" Default: ")
            .unwrap_or((&description, ""));
        assert_eq!(schema_meaning, meaning, "{key}");
        let schema_default = schema_default.trim_end_matches('.');
        let expected = match key.split_once('.') {
            // One struct, described once for both.
            Some((server @ ("admin" | "probes"), "address")) => {
                let mut defaults = schema_default.split(", ");
                let own = format!("{default} ({server})");
                assert!(defaults.any(|of| of == own), "{key}: {schema_default}");
                continue;
            }
            _ if default == "**required**" || default.starts_with("this or ") => "",
            _ => &default,
        };
        assert_eq!(schema_default, expected, "{key}: its default");
    }
}

#[test]
fn the_limits_of_the_security_page_are_those_of_the_configuration() {
    let known = rows("## Configuration");
    let told = rows_of("SECURITY.md", "## Limits and defaults");
    assert!(told.len() > 20);
    for (key, cells) in told {
        let row = known.get(&key).unwrap_or_else(|| panic!("{key} is no key"));
        assert_eq!(cells[1], row[2], "{key}: its default");
    }
}

#[test]
fn the_metrics_table_is_that_of_the_code() {
    let mut told = rows("### Metrics");
    for family in FAMILIES {
        let row = told
            .remove(family.name)
            .unwrap_or_else(|| panic!("{} has no row", family.name));
        assert_eq!(row[1], family.kind, "{}", family.name);
        let mut labels = labels(&row[2]);
        for label in family.labels {
            let told = labels
                .remove(*label)
                .unwrap_or_else(|| panic!("{}: no `{label}`", family.name));
            let known = values(family.name, label);
            assert!(
                known.is_empty() || told == known,
                "{}: {label} is one of {known:?}, not of {told:?}",
                family.name
            );
        }
        assert!(labels.is_empty(), "{}: no {labels:?}", family.name);
        assert_eq!(row[4], family.help, "{}", family.name);
    }
    assert!(told.is_empty(), "no such metrics: {told:?}");
}

/// The values of a label, where they are a closed set.
fn values(family: &str, label: &str) -> BTreeSet<String> {
    fn all<L: Label>() -> Vec<&'static str> {
        L::ALL.iter().map(|value| value.as_str()).collect()
    }
    let values = match (family, label) {
        ("edge_attempts_total", "result") => all::<AttemptResult>(),
        ("edge_retries_refused_total", "reason") => all::<RetryRefusal>(),
        ("edge_tls_handshakes_total", "result") => all::<HandshakeResult>(),
        ("edge_stream_resets_total", "cause") => all::<ResetCause>(),
        ("edge_limits_total", "limit") => all::<Limit>(),
        ("edge_connections_limit", "side") => vec![Side::Downstream.as_str()],
        (_, "side") => all::<Side>(),
        (_, "health") => HEALTH.iter().map(|(word, _)| *word).collect(),
        ("edge_dns_lookups_total", "result") => LookupResult::ALL.map(|r| r.as_str()).into(),
        ("edge_health_checks_total", "result") => CheckResult::ALL.map(|r| r.as_str()).into(),
        ("edge_outlier_detections_total", "result") => Detected::ALL.map(|r| r.as_str()).into(),
        _ => Vec::new(),
    };
    values.into_iter().map(str::to_owned).collect()
}

/// A cell such as "`cluster`, `health` (`healthy`, `unknown`)": each label and the values behind it.
fn labels(cell: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found = BTreeMap::new();
    let (mut last, mut inside) = (None, false);
    for (index, part) in cell.split('`').enumerate() {
        if index % 2 == 0 {
            inside = match (part.rfind('('), part.rfind(')')) {
                (None, None) => inside,
                (open, close) => open > close,
            };
        } else if inside {
            let label: &String = last.as_ref().unwrap_or_else(|| panic!("{cell}"));
            let values: &mut BTreeSet<String> = found.get_mut(label).unwrap();
            values.insert(part.to_owned());
        } else {
            found.insert(part.to_owned(), BTreeSet::new());
            last = Some(part.to_owned());
        }
    }
    found
}

#[test]
fn the_flags_table_is_that_of_the_code() {
    let known: BTreeSet<String> = Flag::ALL.iter().map(|flag| flag.as_str().into()).collect();
    let told: BTreeSet<String> = rows("### Access log")
        .into_keys()
        .filter(|name| name.chars().all(char::is_uppercase))
        .collect();
    assert_eq!(told, known);
}

#[test]
fn the_tables_of_pages_are_those_of_the_code() {
    for (section, source) in [
        (
            "### Admin interface",
            "edge-proxy/src/control_plane/admin/mod.rs",
        ),
        ("### Probes", "edge-proxy/src/control_plane/admin/probes.rs"),
    ] {
        let source = read(source);
        let known: BTreeMap<String, String> = source
            .lines()
            .filter_map(|line| line.trim().strip_prefix(".route(\""))
            .filter_map(|route| route.split_once("\", "))
            .map(|(path, handler)| {
                let method = handler.split('(').next().unwrap_or_default();
                (path.to_owned(), method.to_uppercase())
            })
            .collect();
        let told: BTreeMap<String, String> = rows(section)
            .into_iter()
            .map(|(path, cells)| (path, cells[1].clone()))
            .collect();
        assert_eq!(told, known, "{section}");
    }
}

#[test]
fn what_the_documents_link_to_is_there() {
    for document in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "RELIABILITY.md",
        "SECURITY.md",
        "bench/README.md",
        "tests/cluster/README.md",
    ] {
        let text = read(document);
        // From where the document is.
        let folder = Path::new(document).parent().unwrap();
        for link in text.split("](").skip(1) {
            let target = link.split(')').next().unwrap();
            if target.starts_with("https://") {
                continue;
            }
            let (path, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = root().join(folder).join(path);
            assert!(path.exists(), "{document}: {target}");
            if heading.is_empty() {
                continue;
            }
            let there = if target.starts_with('#') {
                text.clone()
            } else {
                fs::read_to_string(path).unwrap()
            };
            assert!(
                headings(&there).iter().any(|h| h == heading),
                "{document}: {target}"
            );
        }
    }
}

/// Every key of the schema with its path, `clusters[].name`, and its description.
fn schema_keys() -> BTreeMap<String, String> {
    let schema = serde_json::to_value(Config::schema()).unwrap();
    let mut known = BTreeMap::new();
    collect(&schema, &schema, "", &mut known);
    known
}

fn collect(schema: &Value, node: &Value, path: &str, known: &mut BTreeMap<String, String>) {
    if let Some(reference) = node.get("$ref").and_then(Value::as_str) {
        let target = schema.pointer(reference.trim_start_matches('#')).unwrap();
        return collect(schema, target, path, known);
    }
    for alternative in ["anyOf", "oneOf", "allOf"] {
        for node in node
            .get(alternative)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            collect(schema, node, path, known);
        }
    }
    if let Some(items) = node.get("items") {
        collect(schema, items, &format!("{path}[]"), known);
    }
    for (key, node) in node
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let path = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        collect(schema, node, &path, known);
        let description = node["description"].as_str().unwrap_or_default();
        // As it is wrapped in the source.
        let words: Vec<_> = description.split_whitespace().collect();
        known.insert(path, words.join(" "));
    }
}

/// All mappings above these keys.
fn parents(keys: &BTreeSet<String>) -> BTreeSet<String> {
    let above = |key: &String| -> Vec<String> {
        key.match_indices('.')
            .map(|(at, _)| key[..at].trim_end_matches("[]").into())
            .collect()
    };
    keys.iter().flat_map(above).collect()
}

/// The rows of the tables under a heading whose first cell is code, by that code; the cells without their ticks outside.
fn rows(heading: &str) -> BTreeMap<String, Vec<String>> {
    rows_of("README.md", heading)
}

/// [`rows`], of another document.
fn rows_of(document: &str, heading: &str) -> BTreeMap<String, Vec<String>> {
    let text = read(document);
    let level = heading.split(' ').next().unwrap();
    let section: Vec<&str> = text
        .lines()
        .skip_while(|line| *line != heading)
        .skip(1)
        .take_while(|line| {
            !line
                .split(' ')
                .next()
                .is_some_and(|mark| mark.starts_with('#') && mark.len() <= level.len())
        })
        .collect();
    assert!(!section.is_empty(), "no {heading}");
    section
        .iter()
        .filter_map(|line| line.strip_prefix("| `"))
        .map(|row| {
            // A `\|` is a bar in a cell.
            let row = format!("`{row}").replace("\\|", "\u{1}");
            let cells: Vec<String> = row
                .trim_end_matches('|')
                .split('|')
                .map(|cell| cell.trim().replace('\u{1}', "|"))
                .collect();
            (cells[0].trim_matches('`').to_owned(), cells)
        })
        .collect()
}

/// The anchors of a document's headings.
fn headings(text: &str) -> Vec<String> {
    text.lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| anchor(line.trim_start_matches('#').trim()))
        .collect()
}

/// As GitHub makes it of a heading.
fn anchor(heading: &str) -> String {
    heading
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c.to_ascii_lowercase()),
            _ => None,
        })
        .collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}
