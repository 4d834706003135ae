//! From the configuration as written to [`Config`]: references resolved, defaults filled in, every number in range.
//!
//! Pure: no file and no clock is read. A mistake is noted and the work goes on with the default in its place, so all
//! of them are told in one go; the result is used only if there was none.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use self::check::{Check, seconds};
use super::{
    AccessLogConfig, AccessLogFormat, Config, Drain,
    file::{self, File},
    place::At,
    problem::Report,
    values,
};
use crate::cgroup::Resources;

mod check;

mod clusters;
mod listener;
mod routes;

/// What is wrong has its default in the result, which is for nobody's use when `report` has errors.
pub(super) fn validate(file: &File, resources: &Resources, report: &mut Report<'_>) -> Config {
    let mut check = Check { report };
    let listener = check.listener(&file.listener, file.server_name.as_ref(), resources);
    let listener_address = check.address(Some(&file.listener.address), DEFAULT_LISTENER);
    let admin = check.address(file.admin.address.as_ref(), DEFAULT_ADMIN);
    let probes = check.address(file.probes.address.as_ref(), DEFAULT_PROBES);
    check.addresses_differ(file, [listener_address, admin, probes]);
    if let (Some(at), false) = (&file.admin.address, admin.ip().is_loopback()) {
        check.report.warning(
            at.place,
            "anybody who reaches this address can stop the proxy: write 127.0.0.1 and use a port-forward",
        );
    }
    let clusters = check.clusters(&file.clusters);
    let routes = check.routes(&file.routes, &file.clusters);
    Config {
        workers: check.number(file.workers.as_ref(), 0, 0..=1024) as usize,
        nameservers: check.nameservers(&file.dns.nameservers),
        listener_address,
        listener: Arc::new(listener),
        certificate_chain: check.text(&file.listener.tls.certificate_chain).into(),
        private_key: check.text(&file.listener.tls.private_key).into(),
        admin,
        probes,
        drain: Drain {
            time: check
                .duration_or_zero(file.drain.time.as_ref())
                .unwrap_or(seconds(10)),
            deadline: check
                .duration_or_zero(file.drain.deadline.as_ref())
                .unwrap_or(seconds(60)),
        },
        access_log: check.access_log(&file.access_log),
        routes,
        clusters,
    }
}

impl Check<'_, '_> {
    /// Each listener needs a port of its own where their IP addresses overlap. `addresses` are in the file's order.
    fn addresses_differ(&mut self, file: &File, addresses: [SocketAddr; 3]) {
        let written = [
            ("listener.address", Some(&file.listener.address)),
            ("admin.address", file.admin.address.as_ref()),
            ("probes.address", file.probes.address.as_ref()),
        ];
        for (first, second) in [(0, 1), (0, 2), (1, 2)] {
            if !overlap(addresses[first], addresses[second]) {
                continue;
            }
            // The later of the two is blamed if it is written; two defaults differ, so one of them is.
            let second_is_written = written[second].1.is_some();
            let (blamed, other) = if second_is_written {
                (second, first)
            } else {
                (first, second)
            };
            if let Some(at) = written[blamed].1 {
                let (port, other) = (addresses[first].port(), written[other].0);
                let message = format!("port {port} is {other}'s too: write another one");
                self.report.error(at.place, message);
            }
        }
    }

    fn access_log(&mut self, file: &file::AccessLog) -> AccessLogConfig {
        let format = match file.format.as_ref().map(|at| at.value) {
            None | Some(file::AccessLogFormat::Json) => AccessLogFormat::Json,
            Some(file::AccessLogFormat::Text) => AccessLogFormat::Text,
            Some(file::AccessLogFormat::Off) => AccessLogFormat::Off,
        };
        AccessLogConfig {
            format,
            path: file.path.as_ref().map(|at| self.text(at).into()),
        }
    }

    fn nameservers(&mut self, written: &[At<String>]) -> Vec<SocketAddr> {
        let mut take = |at: &At<String>| self.take(at.place, values::nameserver(&at.value));
        written.iter().filter_map(&mut take).collect()
    }
}

/// Whether only one of them can be listened on.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let (one, other) = (a.ip().to_canonical(), b.ip().to_canonical());
    // On Linux `[::]` takes IPv4 too; `0.0.0.0` takes nothing else.
    let all_of =
        |all: IpAddr, one: IpAddr| all.is_unspecified() && (all.is_ipv6() || one.is_ipv4());
    a.port() == b.port()
        && a.port() != 0
        && (one == other || all_of(one, other) || all_of(other, one))
}

const DEFAULT_LISTENER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8443);
const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8090);
const DEFAULT_PROBES: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8091);
