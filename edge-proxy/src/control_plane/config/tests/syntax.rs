//! What ends the reading: mistakes of syntax, unknown keys, aliases that stand for too much.

use super::*;

/// One mistake of syntax or one unknown key at a time, each with its place and what to write.
#[test]
fn mistakes_that_end_the_reading() {
    let mut all = String::new();
    for text in [
        String::new(),
        "listener: [".to_owned(),
        "listener: {}\n\tx: 1\n".to_owned(),
        "- a\n".to_owned(),
        "just text\n".to_owned(),
        with("address: 0.0.0.0:8443", "adress: 0.0.0.0:8443"),
        with("  tls:", "  tsl:"),
        with("  tls:", "  stream_idle: 5m\n  tls:"),
        format!("{MINIMAL}timeout: 5s\n"),
        with("    cluster: echo-grpc", "    clustr: echo-grpc"),
        with("    cluster: echo-grpc", "    zzzzzz: 1"),
        with("  address: 0.0.0.0:8443\n", ""),
        with(
            "{ certificate_chain: tls.crt, private_key: tls.key }",
            "{ certificate_chain: a }",
        ),
        with("    endpoints: [\"echo-grpc:8081\"]\n", ""),
        with("- prefix: /api.Echo/\n    cluster", "- cluster"),
        format!("{MINIMAL}workers: many\n"),
        format!("{MINIMAL}workers: -1 # less\n"),
        format!("{MINIMAL}workers: [2]\n"),
        format!("{MINIMAL}workers: 99999999999999999999\n"),
        format!("{MINIMAL}workers: 1\nworkers: 2\n"),
        format!("{MINIMAL}access_log: {{ format: jsn }}\n"),
        format!("{MINIMAL}admin:\n"),
        format!("{MINIMAL}admin: 127.0.0.1:8090\n"),
        format!("{MINIMAL}server_name: {{ a: b }}\n"),
        format!("{MINIMAL}    lb_policy: least_request\n"),
        format!("{MINIMAL}    discovery: strict_dsn\n"),
        format!("{MINIMAL}    outlier_detection: {{ consecutive_5x: 1 }}\n"),
        format!("{MINIMAL}    outlier_detection: {{ enforcing_consecutive_5xx: 100 }}\n"),
        format!("{MINIMAL}    circuit_breakers: {{ max_request: 1 }}\n"),
        format!("{MINIMAL}    name: again\n"),
        format!("{MINIMAL}    connect_timeout: *nowhere\n"),
        format!("{MINIMAL}---\n{MINIMAL}"),
        with(
            "routes:\n  - prefix: /api.Echo/\n    cluster: echo-grpc\n",
            "routes:\n",
        ),
        with("[\"echo-grpc:8081\"]", "echo-grpc:8081"),
        "[".repeat(100),
        format!("{MINIMAL}workers: {}1{}\n", "[".repeat(50), "]".repeat(50)),
        format!(
            "{MINIMAL}workers: {}1{}\n",
            "[".repeat(500),
            "]".repeat(500)
        ),
        with("  tls:", "   tls:"),
        with("  tls:", " tls:"),
        with("address: ", "address:"),
        with("- prefix", "-prefix"),
        with("    cluster", "   cluster"),
        with("cluster: echo-grpc", "cluster: @echo"),
        with("cluster: echo-grpc", "cluster: *"),
        with("cluster: echo-grpc", "cluster: echo\0"),
        with("0.0.0.0:8443", "[::1]:8443"),
        with("[\"echo-grpc:8081\"]", "[[::1]:8081]"),
        format!("{MINIMAL}\"a\\nb\": 1\n"),
        format!("{MINIMAL}access_log: {{ format: \"js\\non\" }}\n"),
        format!("{MINIMAL}    lb_policy: &a [*a]\n"),
        format!("server_name: &a many\n{MINIMAL}    max_connections: *a\n"),
    ] {
        let messages = messages(&text);
        assert_eq!(messages.lines().count(), 1, "{text}\n{messages}");
        all += &messages;
    }
    insta::assert_snapshot!(all);
}

/// Where something was opened that isn't closed, which is often lines before the parser sees that.
#[test]
fn what_is_not_closed_is_told_where_it_was_opened() {
    let endpoints = |list: &str| with("[\"echo-grpc:8081\"]", list);
    let more = |text: String| text + "    lb_policy: round_robin\n    max_connections: 4\n";
    let tls = |mapping: &str| {
        with(
            "{ certificate_chain: tls.crt, private_key: tls.key }",
            mapping,
        )
    };
    let mut all = String::new();
    for text in [
        endpoints("[\"echo-grpc:8081\""),
        more(endpoints("[\"echo-grpc:8081\"")),
        more(endpoints("[")),
        more(endpoints("[\"echo-grpc:8081\", \"b:1\" \"c:1\"]")),
        more(endpoints("[\"echo-grpc:8081\"}")),
        more(endpoints("\"echo-grpc:8081\"]")),
        tls("{ certificate_chain: tls.crt, private_key: tls.key"),
        tls("{ certificate_chain: tls.crt private_key: tls.key }"),
        tls("{ certificate_chain: [tls.crt, private_key: tls.key }"),
        tls("{\n    certificate_chain: tls.crt,\n    private_key: tls.key"),
        tls("{\n    certificate_chain: tls.crt\n    private_key: tls.key }"),
        endpoints("[\"echo-grpc:8081]"),
        more(endpoints("[\"echo-grpc:8081]")),
        more(endpoints("[echo-grpc:8081\"]")),
        more(endpoints("['echo-grpc:8081]")),
        with("0.0.0.0:8443", "\"0.0.0.0:8443"),
        with("0.0.0.0:8443", "'0.0.0.0:8443"),
        with("/api.Echo/", "\"/api.Echo/"),
        with("/api.Echo/", "'/it's/'"),
        with("/api.Echo/", "\"/api\".Echo/"),
        with("/api.Echo/", "\"/api\\.Echo/\""),
        format!("{MINIMAL}server_name: \"a\n---\n"),
        format!("{MINIMAL}server_name: [a\n---\n"),
        format!("# [ {{ \" ' \n{MINIMAL}server_name: it's {{ a: [b\n"),
    ] {
        let messages = messages(&text);
        assert_eq!(messages.lines().count(), 1, "{text}\n{messages}");
        all += &messages;
    }
    insta::assert_snapshot!(all);
}

/// Whatever bracket or quote of a whole file is left out: what a message says is open, is one, and is told where it is.
#[test]
fn what_is_said_to_be_open_is_there() {
    let mut said = 0;
    for (at, _) in DEFAULTS.match_indices(['[', ']', '{', '}', '"']) {
        let mut text = DEFAULTS.to_owned();
        text.remove(at);
        let Err(errors) = parse(&text) else { continue };
        let message = &errors.errors[0].message;
        let told = message
            .split_once("` of ")
            .or_else(|| message.split_once("begins at "));
        let Some((what, rest)) = told else { continue };
        let place = rest.split_once(' ').unwrap().0;
        let (line, column) = place.split_once(':').unwrap();
        let number = |number: &str| number.parse::<usize>().unwrap() - 1;
        let line = text.lines().nth(number(line)).unwrap();
        let there = line.chars().nth(number(column));
        let named = match what.ends_with(['[', '{']) {
            true => what.chars().last(),
            false => Some('"'),
        };
        assert_eq!(there, named, "{message}\n{text}");
        said += 1;
    }
    assert!(said > 5, "{said}");
}

/// Aliases of aliases: a few hundred bytes that stand for a thousand million values, or for gigabytes of text.
#[test]
fn what_aliases_may_repeat_is_bounded() {
    let tower = |bottom: &str, floor: &dyn Fn(usize) -> String| {
        let floors = (1..10).map(|n| format!("  - &a{n} {}\n", floor(n - 1)));
        format!(
            "{MINIMAL}bomb:\n  - &a0 {bottom}\n{}",
            floors.collect::<String>()
        )
    };
    let lists = tower("[x]", &|below| {
        format!("[{}]", vec![format!("*a{below}"); 9].join(", "))
    });
    let mappings = tower("{ x: 1 }", &|below| {
        let pairs: Vec<_> = (0..9).map(|n| format!("k{n}: *a{below}")).collect();
        format!("{{ {} }}", pairs.join(", "))
    });
    for bomb in [lists.clone(), mappings, lists.replacen(MINIMAL, "", 1)] {
        assert!(bomb.len() < 2000);
        let messages = messages(&bomb);
        assert!(
            messages.ends_with(
                ": this alias and those before it repeat more than any configuration needs: \
                 write out what they stand for\n"
            ) && messages.lines().count() == 1,
            "{messages}"
        );
    }
    let text = "x".repeat(1 << 20);
    let bomb = with(
        "[\"echo-grpc:8081\"]",
        &format!("[&text {text}{}]", ", *text".repeat(100)),
    );
    let message = messages(&bomb);
    assert!(
        message.ends_with(
            ": the file is larger or deeper than any configuration: is it the right one?\n"
        ),
        "{message}"
    );
    // A thousand clusters that share what aliases are for are well within it.
    let clusters: String = (0..1000)
        .map(|n| format!("  - {{ name: c{n}, endpoints: [\"e:1\"], health_check: *check }}\n"))
        .collect();
    let text = format!(
        "{MINIMAL}    health_check: &check {{ service: a, timeout: 2s, interval: 5s }}\n{clusters}"
    );
    assert_eq!(config(&text).clusters.len(), 1001);
}
