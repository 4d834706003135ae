//! The control plane as a whole: its thread, its sockets, its files.

use std::{fs, path::Path, sync::Arc};

use rcgen::{CertificateParams, KeyPair};

use super::{
    ControlPlane, PairFault, SpawnError,
    config::Config,
    discovery::script::{self as names, NameServer},
    health::script::{self as backends, Backend},
};
use crate::snapshot::{Health, Hints};

fn config(directory: &Path) -> Config {
    let text = format!(
        "listener:\n  address: 127.0.0.1:8443\n  tls: {{ certificate_chain: {0}/tls.crt, private_key: {0}/tls.key }}\n\
         routes: [{{ prefix: /, cluster: echo }}]\n\
         clusters: [{{ name: echo, discovery: static, endpoints: [\"127.0.0.1:9\"] }}]\n",
        directory.display()
    );
    Config::parse(&text, Path::new("test.yaml")).unwrap().config
}

pub(super) fn write_pair(directory: &Path, matching: bool) {
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let params = CertificateParams::new(["grpc.example.com".to_owned()]).unwrap();
    fs::write(
        directory.join("tls.crt"),
        params.self_signed(&key).unwrap().pem(),
    )
    .unwrap();
    let key = if matching { key } else { other };
    fs::write(directory.join("tls.key"), key.serialize_pem()).unwrap();
}

#[tokio::test]
async fn it_starts_is_ready_serves_others_and_stops() {
    let directory = tempfile::tempdir().unwrap();
    write_pair(directory.path(), true);
    let control =
        ControlPlane::spawn(config(directory.path()), None, Arc::new(Hints::default())).unwrap();
    control.handle().first_answers().await;
    let snapshot = control.reader().load();
    assert!(snapshot.tls.is_some());
    assert_eq!(snapshot.clusters[0].eligible.len(), 1);
    assert!(control.handle().ready() && control.status().ready());

    control.handle().set_serving(false).await;
    assert!(!control.handle().ready());
    assert!(!control.reader().load().serving);

    let name = control
        .runtime()
        .spawn(async { std::thread::current().name().map(str::to_owned) })
        .await
        .unwrap();
    assert_eq!(name.as_deref(), Some("control"));

    let mut reader = control.reader();
    reader.load();
    let handle = control.handle();
    tokio::task::spawn_blocking(move || control.stop())
        .await
        .unwrap();
    assert!(!reader.changed().await, "nothing is published any more");
    handle.set_serving(true).await;
    assert!(handle.reload().await.is_err());
}

#[tokio::test]
async fn names_are_looked_up_and_what_they_name_is_checked() {
    let backend = Backend::start(|_| backends::Reply::Health(1)).await;
    let address = backend.address;
    let server = NameServer::start(move |_, _| names::Reply::Addresses(vec![address.ip()])).await;
    let directory = tempfile::tempdir().unwrap();
    let text = format!(
        "dns: {{ nameservers: [\"{}\"] }}\n\
         listener:\n  address: 127.0.0.1:8443\n  tls: {{ certificate_chain: {1}/tls.crt, private_key: {1}/tls.key }}\n\
         routes: [{{ prefix: /, cluster: echo }}]\n\
         clusters: [{{ name: echo, endpoints: [\"echo.example.:{2}\"], dns_lookup_family: v4_only, health_check: {{ service: api.Echo }} }}]\n",
        server.address,
        directory.path().display(),
        address.port(),
    );
    let config = Config::parse(&text, Path::new("test.yaml")).unwrap().config;
    let control = ControlPlane::spawn(config, None, Arc::new(Hints::default())).unwrap();
    control.handle().first_answers().await;
    let mut reader = control.reader();
    while reader.load().clusters[0].eligible.is_empty() {
        assert!(reader.changed().await);
    }
    let endpoint = reader.load().clusters[0].eligible[0].clone();
    assert_eq!(
        (endpoint.shared.address, &endpoint.health),
        (address, &Health::Healthy)
    );
    assert_eq!(server.asked(), 1);
    assert_eq!(backend.requests().len(), 1);
}

#[tokio::test]
async fn without_a_certificate_it_runs_but_is_not_ready_until_one_comes() {
    let directory = tempfile::tempdir().unwrap();
    let control =
        ControlPlane::spawn(config(directory.path()), None, Arc::new(Hints::default())).unwrap();
    control.handle().first_answers().await;
    assert!(!control.handle().ready());
    let mut reader = control.reader();
    write_pair(directory.path(), true);
    while reader.load().tls.is_none() {
        assert!(reader.changed().await);
    }
    // The report follows the publication.
    control.handle().set_serving(true).await;
    assert!(control.handle().ready());
}

#[test]
fn a_pair_that_does_not_match_is_no_start() {
    let directory = tempfile::tempdir().unwrap();
    write_pair(directory.path(), false);
    let error = ControlPlane::spawn(config(directory.path()), None, Arc::new(Hints::default()))
        .unwrap_err();
    assert!(matches!(
        &error,
        SpawnError::Certificate(pair) if matches!(pair.fault, PairFault::Mismatched { .. })
    ));
    assert!(error.to_string().contains("tls.key"), "{error}");
}

#[tokio::test]
async fn dropping_it_stops_it() {
    let directory = tempfile::tempdir().unwrap();
    let control =
        ControlPlane::spawn(config(directory.path()), None, Arc::new(Hints::default())).unwrap();
    let mut reader = control.reader();
    drop(control);
    while reader.changed().await {}
}
