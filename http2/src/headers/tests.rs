use super::*;

fn request() -> Headers {
    Headers::from_iter([
        (":method", "POST"),
        (":scheme", "https"),
        (":path", "/api.Echo/Echo"),
        ("x-a", "1"),
        ("te", "trailers"),
        ("x-a", "2"),
    ])
}

fn text(headers: &Headers) -> String {
    let line = |f: Field<'_>| {
        format!(
            "{}={}",
            String::from_utf8_lossy(f.name),
            String::from_utf8_lossy(f.value)
        )
    };
    headers.iter().map(line).collect::<Vec<_>>().join(" ")
}

fn counted(headers: &Headers) -> usize {
    headers
        .iter()
        .map(|f| f.name.len() + f.value.len() + 32)
        .sum()
}

#[test]
fn order_and_duplicates_are_kept() {
    let headers = request();
    assert_eq!(
        text(&headers),
        ":method=POST :scheme=https :path=/api.Echo/Echo x-a=1 te=trailers x-a=2"
    );
    assert_eq!(headers.get_all(b"x-a").collect::<Vec<_>>(), [b"1", b"2"]);
    assert_eq!(headers.get(b"x-b"), None);
    assert_eq!(headers.known(Known::Te), Some(&b"trailers"[..]));
    assert_eq!(headers.known(Known::Cookie), None);
    assert_eq!(headers.path(), Some(&b"/api.Echo/Echo"[..]));
    assert_eq!(headers.len(), 6);
    assert_eq!(headers.list_size(), counted(&headers));
}

#[test]
fn set_replaces_the_first_and_removes_the_others() {
    let mut headers = request();
    headers.set(b"x-a", b"longer than before");
    headers.set_known(Known::Te, b"x");
    headers.set(b"x-b", b"new");
    headers.set(b":authority", b"a");
    assert_eq!(
        text(&headers),
        ":method=POST :scheme=https :path=/api.Echo/Echo :authority=a x-a=longer than before te=x x-b=new"
    );
    assert_eq!(headers.list_size(), counted(&headers));
}

#[test]
fn removal_is_exact_in_size_and_order() {
    let mut headers = request();
    headers.remove(b"x-a");
    headers.remove_known(Known::Scheme);
    headers.remove(b"cookie");
    headers.retain(|f| f.known != Known::Te);
    assert_eq!(text(&headers), ":method=POST :path=/api.Echo/Echo");
    assert_eq!(headers.list_size(), counted(&headers));
    assert_eq!(headers.known(Known::Te), None);
    headers.clear();
    assert!(headers.is_empty());
    assert_eq!((headers.list_size(), headers.method()), (0, None));
}

#[test]
fn endless_edits_leave_bounded_garbage() {
    let mut headers = request();
    let long = [b'v'; 100];
    for i in 0..10_000 {
        headers.set(b"x-a", &long[..i % 100]);
        assert!(headers.0.bytes.len() <= 2 * headers.0.live + GARBAGE + long.len() + 3);
        assert_eq!(headers.list_size(), counted(&headers));
    }
    assert_eq!(headers.path(), Some(&b"/api.Echo/Echo"[..]));
}

#[test]
fn the_memory_of_a_block_is_what_its_buffers_have_grown_to() {
    let mut headers = Headers::with_capacity(10, 1000);
    let room = headers.memory();
    assert!(room >= 1000 + 10 * size_of::<Entry>());
    headers.push(b"x", &[b'v'; 900]);
    assert_eq!(headers.memory(), room);
    headers.push(b"x", &[b'v'; 900]);
    let grown = headers.memory();
    assert!(grown >= room + 800);
    assert!(Packed::new(&headers).memory() >= 1802);
    headers.clear();
    assert_eq!(headers.memory(), grown);
}

#[test]
fn names_are_found_wherever_they_stand() {
    let mut headers = Headers::new();
    for at in 0..600 {
        headers.push(b"x-other", b"o");
        if at == 200 || at == 400 {
            headers.push(b"te", b"t");
        }
        if at == 500 {
            headers.push(b"host", b"h");
            headers.push(b"host", b"i");
        }
    }
    let all = |headers: &Headers, known| headers.all_known(known).count();
    assert_eq!(
        (all(&headers, Known::Te), all(&headers, Known::Host)),
        (2, 2)
    );
    assert_eq!(headers.known(Known::Host), Some(&b"h"[..]));
    // What goes from before them moves them.
    let mut seen = 0;
    headers.retain(|field| {
        seen += 1;
        field.known != Known::Other || seen > 300
    });
    assert_eq!(
        (all(&headers, Known::Te), all(&headers, Known::Host)),
        (2, 2)
    );
    headers.set_known(Known::Host, b"j");
    assert_eq!(headers.all_known(Known::Host).collect::<Vec<_>>(), [b"j"]);
    headers.set_known(Known::Host, b"k");
    headers.remove_known(Known::Te);
    assert_eq!(headers.known(Known::Te), None);
    assert!(!headers.has_any(KnownSet::of(&[Known::Te, Known::Date])));
    assert!(headers.has_any(KnownSet::of(&[Known::Date, Known::Host])));
    assert_eq!(headers.known(Known::Host), Some(&b"k"[..]));
    assert_eq!(headers.others().count() + 1, headers.len());
    assert_eq!(headers.list_size(), counted(&headers));
}

#[test]
fn known_names_spell_themselves() {
    assert_eq!(Known::Http2Settings.name(), "http2-settings");
    assert_eq!(Known::Other.name(), "");
    let mut headers = Headers::new();
    headers.push_known(Known::GrpcStatus, b"0");
    headers.push_known(Known::Other, b"nothing");
    assert_eq!(text(&headers), "grpc-status=0");
}

#[test]
fn what_stands_last_and_alone_is_popped() {
    let mut headers = request();
    for refused in [Known::Te, Known::Cookie, Known::Other] {
        assert!(!headers.pop_known(refused), "{refused:?}");
    }
    let before = headers.clone();
    headers.push_known(Known::GrpcTimeout, b"1S");
    assert!(headers.pop_known(Known::GrpcTimeout));
    assert_eq!(headers, before);
    assert_eq!(headers.known(Known::GrpcTimeout), None);
    assert_eq!(headers.list_size(), counted(&headers));
    headers.push_known(Known::GrpcTimeout, b"2S");
    assert_eq!(headers.known(Known::GrpcTimeout), Some(&b"2S"[..]));
    // One of two, and one whose bytes lie before another's.
    headers.push_known(Known::GrpcTimeout, b"3S");
    assert!(!headers.pop_known(Known::GrpcTimeout));
    let mut headers = request();
    headers.push_known(Known::GrpcTimeout, b"1S");
    headers.set_known(Known::Te, b"x");
    assert!(!headers.pop_known(Known::GrpcTimeout));
    assert!(!Headers::new().pop_known(Known::GrpcTimeout));
}
