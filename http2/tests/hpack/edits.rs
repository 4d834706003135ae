//! A header list that is edited, against a plain one.

use http2::Headers;
use proptest::{collection::vec, prelude::*};

use super::{field, pairs};

proptest! {
    #[test]
    fn edits_leave_what_a_list_would_hold(start in vec(field(), 0..12), edits in vec((0..4u8, field()), 0..40)) {
        let mut headers: Headers = start.iter().map(|(n, v)| (n, v)).collect();
        let mut list = start;
        for (kind, (name, value)) in edits {
            match kind {
                0 => {
                    headers.push(&name, &value);
                    list.push((name, value));
                }
                1 => {
                    headers.set(&name, &value);
                    if let Some(at) = list.iter().position(|(n, _)| *n == name) {
                        list[at].1 = value;
                        let mut nth = 0;
                        list.retain(|(n, _)| { nth += 1; nth - 1 <= at || *n != name });
                    } else {
                        let pseudo = list.iter().take_while(|(n, _)| n.starts_with(b":")).count();
                        let at = if name.starts_with(b":") { pseudo } else { list.len() };
                        list.insert(at, (name, value));
                    }
                }
                2 => {
                    headers.remove(&name);
                    list.retain(|(n, _)| *n != name);
                }
                _ => {
                    headers.retain(|f| f.value != value);
                    list.retain(|(_, v)| *v != value);
                }
            }
            prop_assert_eq!(pairs(&headers), list.clone());
            prop_assert_eq!(headers.list_size(), list.iter().map(|(n, v)| n.len() + v.len() + 32).sum::<usize>());
            for (name, _) in &list {
                let values: Vec<_> = list.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_slice()).collect();
                prop_assert_eq!(headers.get(name), values.first().copied());
                prop_assert_eq!(headers.get_all(name).collect::<Vec<_>>(), values);
            }
        }
    }
}
