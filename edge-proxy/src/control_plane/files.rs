//! Wakes when files may have changed: by watching their directories, and by looking now and then anyway.
//!
//! The *directory* is watched, not the file: Kubernetes swaps the files of a Secret or ConfigMap by renaming the symlink
//! `..data` beside them, and editors replace files instead of writing to them; a watch on the file itself would keep
//! watching the old one. Where no watch can be had (the directory isn't there yet, no inotify instances left, a file
//! system without events) looking every second takes its place.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::{sync::Notify, time};

/// A watch on the directories of some files.
#[derive(Debug)]
pub(super) struct Directories {
    /// Held for as long as events are wanted.
    watcher: Option<RecommendedWatcher>,
    changed: Arc<Notify>,
}

impl Directories {
    /// Watches the directories of `files`, if they are there.
    pub(super) fn of<'a>(files: impl IntoIterator<Item = &'a Path>) -> Self {
        let files: Vec<&Path> = files.into_iter().collect();
        let directories: BTreeSet<PathBuf> = files.iter().copied().map(directory).collect();
        let names = files
            .iter()
            .filter_map(|file| file.file_name())
            .map(ToOwned::to_owned)
            .collect();
        let changed = Arc::new(Notify::new());
        let watcher = watch(&directories, names, changed.clone())
            .inspect_err(|error| {
                tracing::debug!(%error, "cannot watch {directories:?}: looking every second instead");
            })
            .ok();
        Self { watcher, changed }
    }

    /// Waits until something changed and has been quiet for a moment, or `poll` (a second, without a watch) has
    /// passed: time to read the files. Spurious returns are normal.
    pub(super) async fn changed(&self, poll: Duration) {
        let poll = if self.watcher.is_some() {
            poll
        } else {
            poll.min(UNWATCHED)
        };
        if time::timeout(poll, self.changed.notified()).await.is_ok() {
            // One swap is several events; and a file that is being written should be whole.
            let _ = time::timeout(SETTLED, async {
                loop {
                    if time::timeout(QUIET, self.changed.notified()).await.is_err() {
                        return;
                    }
                }
            })
            .await;
        }
    }
}

fn watch(
    directories: &BTreeSet<PathBuf>,
    names: BTreeSet<OsString>,
    changed: Arc<Notify>,
) -> notify::Result<RecommendedWatcher> {
    let watched = directories.clone();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        // An error may mean lost events: look.
        if event.map_or(true, |event| {
            is_change(event.kind) && concerns(&event.paths, &names, &watched)
        }) {
            changed.notify_one();
        }
    })?;
    for directory in directories {
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

/// Reading the files is an event too, and would wake us for ever.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

/// A log that is written beside the files must not have them read again for each line: only their own names count, and
/// those with which Kubernetes swaps them (`..data`, `..2026_…`); and the directory itself, which may make room for another.
fn concerns(
    paths: &[PathBuf],
    names: &BTreeSet<OsString>,
    directories: &BTreeSet<PathBuf>,
) -> bool {
    let ours = |name: &OsStr| names.contains(name) || name.as_encoded_bytes().starts_with(b"..");
    let concerns = |path: &PathBuf| directories.contains(path) || path.file_name().is_none_or(ours);
    paths.is_empty() || paths.iter().any(concerns)
}

fn directory(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Between looks where there is no watch.
const UNWATCHED: Duration = Duration::from_secs(1);

/// Without events for so long: the change is over.
const QUIET: Duration = Duration::from_millis(50);

/// Whatever goes on in the directory, look after so long.
const SETTLED: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_directory_of_a_bare_name_is_the_current_one() {
        assert_eq!(directory(Path::new("edge.yaml")), Path::new("."));
        assert_eq!(
            directory(Path::new("/etc/edge/tls.crt")),
            Path::new("/etc/edge")
        );
    }

    #[test]
    fn reading_is_no_change() {
        assert!(!is_change(EventKind::Access(AccessKind::Open(
            AccessMode::Any
        ))));
        assert!(!is_change(EventKind::Access(AccessKind::Read)));
        assert!(is_change(EventKind::Access(AccessKind::Close(
            AccessMode::Write
        ))));
        assert!(is_change(EventKind::Any));
    }

    #[test]
    fn only_the_files_themselves_and_swaps_of_all_of_them_count() {
        let names = BTreeSet::from(["tls.crt".into()]);
        let directories = BTreeSet::from(["/tls".into()]);
        let concerns = |path: &str| concerns(&[PathBuf::from(path)], &names, &directories);
        assert!(concerns("/tls/tls.crt"));
        assert!(concerns("/tls/..data"));
        assert!(concerns("/tls/..2026_11_23_00_00_00.1"));
        assert!(!concerns("/tls/access.log"));
        assert!(concerns("/tls"));
        assert!(super::concerns(&[], &names, &directories));
    }

    #[tokio::test]
    async fn a_change_in_the_directory_wakes() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        let watch = Directories::of([file.as_path()]);
        assert!(watch.watcher.is_some());
        fs::write(&file, "text").unwrap();
        watch.changed(Duration::from_secs(3600)).await;
    }

    #[tokio::test]
    async fn a_directory_that_is_replaced_wakes() {
        let parent = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "tls"].map(|name| parent.path().join(name));
        fs::create_dir(&new).unwrap();
        let watch = Directories::of([new.join("tls.crt").as_path()]);
        fs::rename(&new, &old).unwrap();
        watch.changed(Duration::from_secs(3600)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_directory_that_is_not_there_is_looked_at_every_second() {
        let watch = Directories::of([Path::new("/no/such/directory/file")]);
        assert!(watch.watcher.is_none());
        let start = time::Instant::now();
        watch.changed(Duration::from_secs(60)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(1));
    }
}
