//! From the start of the process to the first RPC that a backend has answered, and the size of the program.

use std::{fs, path::Path, process::Command};

use super::{Part, Plan};
use crate::{
    peers::Setting,
    report::{Metric, Results},
};

/// Measures all peers.
///
/// # Errors
/// When they can't be started.
pub(super) async fn run(plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    for kind in &plan.peers {
        let bytes = stripped(plan.programs.get(*kind)?);
        let mib = bytes as f64 / (1024.0 * 1024.0);
        results.add(Part::Start, "program, stripped", Metric::Size, *kind, mib);
    }
    let lab = plan.lab_of(&[], Setting::default(), results).await?;
    for round in 0..plan.rounds {
        for index in crate::lab::turn(plan.peers.len(), round) {
            let kind = plan.peers[index];
            match lab.launch(&plan.programs, kind).await {
                Ok(took) => {
                    let millis = took.as_secs_f64() * 1000.0;
                    eprintln!("{:24} {:12} {millis:>9.1} ms", SHAPE, kind.name());
                    results.add(Part::Start, SHAPE, Metric::Start, kind, millis);
                }
                Err(error) => results.note(format!("{}, start: {error:#}", kind.name())),
            }
        }
    }
    Ok(())
}

/// As the targets name it.
pub(crate) const SHAPE: &str = "start to first answer";

/// Bytes without symbols; as it is, where binutils are missing.
fn stripped(program: &Path) -> u64 {
    let size = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
    let Ok(copy) = tempfile::NamedTempFile::new() else {
        return size(program);
    };
    let strip = Command::new("strip")
        .arg("-o")
        .arg(copy.path())
        .arg(program)
        .status();
    match strip {
        Ok(status) if status.success() => size(copy.path()),
        _ => size(program),
    }
}
