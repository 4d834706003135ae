//! Any routes and any path: the table finds what the loop finds. The input's lines are prefixes, the last is the path.

#![no_main]

use edge_proxy::{
    data_plane::route::RouteTable,
    snapshot::{Route, RouteAction},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    let mut prefixes: Vec<&str> = input.split('\n').collect();
    let path = prefixes.pop().unwrap_or_default();
    let routes = prefixes.iter().map(|prefix| Route {
        prefix: (*prefix).into(),
        action: RouteAction::DirectResponse {
            status: 200,
            body: "".into(),
        },
    });
    let table = RouteTable::new(routes.collect());

    let naive = prefixes.iter().position(|prefix| path.starts_with(prefix));
    let found = table.find(path.as_bytes());
    let found = found.and_then(|route| table.routes().iter().position(|r| std::ptr::eq(r, route)));
    assert_eq!(found, naive);

    for shadowed in table.unreachable() {
        assert!(shadowed.because_of < shadowed.route);
        assert!(prefixes[shadowed.route].starts_with(prefixes[shadowed.because_of]));
    }
});
