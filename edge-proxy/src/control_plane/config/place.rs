//! Where in the file a value stands: line and column for every value, and from them the key's path.
//!
//! The typed structs keep only places. The path (`clusters[1].connect_timeout`) is found by walking the [`Outline`],
//! the same text read a second time without a schema, to the node that starts at the place: so the one who reports a
//! mistake never spells a path, and an error of the YAML library, which knows a place only, gets its path as well.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{Location, Spanned};

use super::problem::Shown;

/// Line and column, both from 1; the column counts characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// From 1.
    pub line: u64,
    /// From 1, in characters.
    pub column: u64,
}

/// A value and where it stands (for an alias: where it is used).
#[derive(Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// The keys and places of a YAML text, whatever it means.
#[derive(Debug)]
pub(super) struct Outline(At<Node>);

#[derive(Debug)]
enum Node {
    Scalar,
    Sequence(Vec<At<Node>>),
    Mapping(Vec<(At<Key>, At<Node>)>),
}

/// A mapping's key. Only text is a key of ours; anything else is refused by the typed reading.
#[derive(Debug)]
struct Key(String);

impl Outline {
    /// The path of the value that starts at `place`: `routes[0].cluster`; empty for the whole file, or when there is
    /// none.
    pub(super) fn path(&self, place: Place) -> String {
        let mut path = Vec::new();
        find(&self.0, place, None, &mut path);
        join(&path)
    }

    /// The path of the key `name` that starts at `place`.
    pub(super) fn path_of_key(&self, place: Place, name: &str) -> String {
        let mut path = Vec::new();
        if !find(&self.0, place, Some(name), &mut path) {
            return Shown(name).to_string();
        }
        join(&path)
    }
}

impl<'de> Deserialize<'de> for Outline {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        At::deserialize(deserializer).map(Self)
    }
}

impl From<Location> for Place {
    fn from(location: Location) -> Self {
        Self {
            line: location.line(),
            column: location.column(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<T>::deserialize(deserializer)?;
        Ok(Self {
            value: spanned.value,
            place: spanned.referenced.into(),
        })
    }
}

/// In the schema a place doesn't show.
impl<T: JsonSchema> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

impl Node {
    fn first_key(&self) -> Option<Place> {
        match self {
            Self::Mapping(entries) => entries.first().map(|(key, _)| key.place),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_str<E>(self, _: &str) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Node::Sequence(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Mapping(entries))
    }
}

/// One step of a path.
enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

/// Depth first, in the text's order. With `key`, the key of that name at `place` is looked for, else the value; a
/// mapping stands where its first key does, also in braces.
fn find<'a>(node: &'a At<Node>, place: Place, key: Option<&str>, path: &mut Vec<Step<'a>>) -> bool {
    if key.is_none() && (node.place == place || node.value.first_key() == Some(place)) {
        return true;
    }
    match &node.value {
        Node::Scalar => false,
        Node::Sequence(items) => items.iter().enumerate().any(|(index, item)| {
            path.push(Step::Index(index));
            find(item, place, key, path) || path.pop().is_none()
        }),
        Node::Mapping(entries) => entries.iter().any(|(name, value)| {
            path.push(Step::Key(&name.value.0));
            (name.place == place && key == Some(&name.value.0))
                || find(value, place, key, path)
                || path.pop().is_none()
        }),
    }
}

fn join(path: &[Step<'_>]) -> String {
    use fmt::Write as _;
    let mut text = String::new();
    for step in path {
        // Writing to a String doesn't fail.
        let _ = match step {
            Step::Index(index) => write!(text, "[{index}]"),
            Step::Key(key) if text.is_empty() => write!(text, "{}", Shown(key)),
            Step::Key(key) => write!(text, ".{}", Shown(key)),
        };
    }
    text
}
