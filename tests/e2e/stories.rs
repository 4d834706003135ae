//! What the program `attack` performs, in small: the same functions, a few seconds each. What depends on the machine's
//! speed is judged by the program alone, since other tests run beside these.

use std::io::Write as _;

use e2e::attack::{Options, Report, Scale, Verdict};

/// A test for each of `$all`, by its name, and one that none is missing.
macro_rules! stories {
    ($all:ident, $run:ident: $($story:ident $name:literal)*) => {
        $(#[tokio::test]
        async fn $story() {
            let one = $all.iter().find(|one| one.name == $name).unwrap();
            $crate::stories::held($run(one, &$crate::stories::in_small()).await);
        })*

        #[test]
        fn every_one_has_its_story() {
            let told = [$($name),*];
            let all: Vec<_> = $all.iter().map(|one| one.name).collect();
            assert_eq!(told[..], all[..]);
        }
    };
}

pub(crate) fn in_small() -> Options {
    Options {
        program: env!("CARGO_BIN_EXE_edge-proxy-under-test").into(),
        scale: Scale::Quick,
        strict: false,
    }
}

pub(crate) fn held(report: anyhow::Result<Report>) {
    let report = report.unwrap_or_else(|error| panic!("{error:#}"));
    match report.verdict() {
        Verdict::Held => {}
        // Not by `eprint!`, which a test that passes keeps for itself. Nobody may be listening.
        Verdict::LeftOut => {
            let _ = write!(std::io::stderr(), "{}", report.reasons());
        }
        Verdict::Missed => panic!("{}", report.reasons()),
    }
}
