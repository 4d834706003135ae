//! A DNS server that answers, or fails to, as it is told: by name, changeable while it runs.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hickory_proto::{
    op::{Message, Metadata, ResponseCode},
    rr::{
        RData, Record, RecordType,
        rdata::{A, AAAA},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    runtime::Runtime,
    sync::watch,
    task::JoinSet,
};

use crate::{backend::own_thread, loopback, wait::within};

/// What the server does when it is asked for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The A or AAAA records of these, in this order.
    Addresses(Vec<IpAddr>),
    /// No such name.
    NoSuchName,
    /// The name exists and has no records of that type.
    Empty,
    /// SERVFAIL.
    ServerFailure,
    /// REFUSED.
    Refused,
    /// Nothing: the client's time runs out.
    Silence,
    /// Bytes that are no DNS message, but for the query's id.
    Garbage,
}

/// The server, on UDP and TCP of one port. It ends with this value.
pub struct DnsServer {
    address: SocketAddr,
    zone: Arc<Zone>,
    /// A thread of its own: whoever starts a proxy may block until its names are found.
    runtime: Option<Runtime>,
}

struct Zone {
    /// By name: lower case, without the trailing dot. Names that aren't here don't exist.
    answers: Mutex<HashMap<String, Answer>>,
    /// How often each name was asked for (A and AAAA are counted alike).
    queries: watch::Sender<HashMap<String, usize>>,
}

impl DnsServer {
    /// Starts one that knows no name.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start() -> io::Result<Self> {
        Self::start_at(SocketAddr::new(loopback::address(), 0)).await
    }

    /// Starts one at `address`.
    ///
    /// # Errors
    /// When the port can't be had.
    pub async fn start_at(address: SocketAddr) -> io::Result<Self> {
        let runtime = own_thread("dns");
        let bind = async move {
            let tcp = TcpListener::bind(address).await?;
            let udp = UdpSocket::bind(tcp.local_addr()?).await?;
            io::Result::Ok((udp, tcp))
        };
        let (udp, tcp) = runtime.spawn(bind).await.expect("binding doesn't panic")?;
        let address = udp.local_addr()?;
        let zone = Arc::new(Zone {
            answers: Mutex::default(),
            queries: watch::Sender::default(),
        });
        runtime.spawn(serve_udp(udp, zone.clone()));
        runtime.spawn(serve_tcp(tcp, zone.clone()));
        Ok(Self {
            address,
            zone,
            runtime: Some(runtime),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on `name` is answered so.
    pub fn set(&self, name: &str, answer: Answer) {
        self.zone.answers().insert(key(name), answer);
    }

    /// From now on `name` has these addresses.
    pub fn set_addresses<'a>(
        &self,
        name: &str,
        addresses: impl IntoIterator<Item = &'a SocketAddr>,
    ) {
        let addresses = addresses.into_iter().map(SocketAddr::ip).collect();
        self.set(name, Answer::Addresses(addresses));
    }

    /// How often `name` was asked for.
    pub fn queries(&self, name: &str) -> usize {
        self.zone
            .queries
            .borrow()
            .get(&key(name))
            .copied()
            .unwrap_or(0)
    }

    /// Waits until `name` was asked for `more` times from now on.
    pub async fn asked(&self, name: &str, more: usize) {
        let mut queries = self.zone.queries.subscribe();
        let name = key(name);
        let goal = queries.borrow().get(&name).copied().unwrap_or(0) + more;
        let enough = queries.wait_for(|all| all.get(&name).is_some_and(|count| *count >= goal));
        within("a DNS query", enough)
            .await
            .expect("the sender lives in self");
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Zone {
    fn answers(&self) -> MutexGuard<'_, HashMap<String, Answer>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes to answer `query` with; `None`: nothing at all.
    fn answer(&self, query: &[u8], limit: impl Fn(&Message) -> usize) -> Option<Vec<u8>> {
        let query = Message::from_vec(query).ok()?;
        let question = query.queries.first()?.clone();
        let name = key(&question.name().to_utf8());
        let answer = self
            .answers()
            .get(&name)
            .cloned()
            .unwrap_or(Answer::NoSuchName);
        self.queries
            .send_modify(|all| *all.entry(name).or_default() += 1);

        let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
        reply.metadata = Metadata::response_from_request(&query.metadata);
        reply.metadata.authoritative = true;
        reply.add_query(question.clone());
        match answer {
            Answer::Silence => return None,
            Answer::Garbage => {
                let mut bytes = query.metadata.id.to_be_bytes().to_vec();
                bytes.extend([0xff; 9]);
                return Some(bytes);
            }
            Answer::NoSuchName => reply.metadata.response_code = ResponseCode::NXDomain,
            Answer::ServerFailure => reply.metadata.response_code = ResponseCode::ServFail,
            Answer::Refused => reply.metadata.response_code = ResponseCode::Refused,
            Answer::Empty => {}
            Answer::Addresses(addresses) => {
                let data = addresses.into_iter().filter_map(|address| {
                    match (question.query_type(), address) {
                        (RecordType::A, IpAddr::V4(ip)) => Some(RData::A(A(ip))),
                        (RecordType::AAAA, IpAddr::V6(ip)) => Some(RData::AAAA(AAAA(ip))),
                        _ => None,
                    }
                });
                reply.add_answers(
                    data.map(|data| Record::from_rdata(question.name().clone(), TTL, data)),
                );
            }
        }
        let bytes = reply.to_vec().ok()?;
        if bytes.len() <= limit(&query) {
            return Some(bytes);
        }
        reply.answers.clear();
        reply.metadata.truncation = true;
        reply.to_vec().ok()
    }
}

async fn serve_udp(socket: UdpSocket, zone: Arc<Zone>) {
    let mut buffer = [0; 4096];
    while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
        let limit = |query: &Message| usize::from(query.max_payload().max(512));
        if let Some(reply) = zone.answer(&buffer[..length], limit) {
            // The client may be gone by now, which is its own affair.
            let _ = socket.send_to(&reply, peer).await;
        }
    }
}

async fn serve_tcp(listener: TcpListener, zone: Arc<Zone>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve_connection(stream, zone.clone()));
    }
}

async fn serve_connection(mut stream: TcpStream, zone: Arc<Zone>) {
    while let Ok(length) = stream.read_u16().await {
        let mut query = vec![0; usize::from(length)];
        if stream.read_exact(&mut query).await.is_err() {
            return;
        }
        if let Some(reply) = zone.answer(&query, |_| usize::from(u16::MAX)) {
            let mut bytes = (reply.len() as u16).to_be_bytes().to_vec();
            bytes.extend(reply);
            if stream.write_all(&bytes).await.is_err() {
                return;
            }
        }
    }
}

fn key(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// As cluster DNS has it.
const TTL: u32 = 30;

#[cfg(test)]
mod tests {
    use hickory_proto::{op::Query, rr::Name};

    use super::*;

    fn query(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message.to_vec().unwrap()
    }

    async fn ask(server: &DnsServer, name: &str, kind: RecordType) -> Vec<u8> {
        let socket = UdpSocket::bind((loopback::address(), 0)).await.unwrap();
        socket
            .send_to(&query(name, kind), server.address())
            .await
            .unwrap();
        let mut buffer = [0; 4096];
        let length = within("an answer", socket.recv(&mut buffer)).await.unwrap();
        buffer[..length].to_vec()
    }

    #[tokio::test]
    async fn answers_as_told_and_counts() {
        let server = DnsServer::start().await.unwrap();
        server.set(
            "pods.test.",
            Answer::Addresses(vec!["127.0.0.2".parse().unwrap(), "::1".parse().unwrap()]),
        );
        let reply = Message::from_vec(&ask(&server, "PODS.test", RecordType::A).await).unwrap();
        assert_eq!(reply.answers.len(), 1);
        let reply = Message::from_vec(&ask(&server, "pods.test", RecordType::AAAA).await).unwrap();
        assert_eq!(reply.answers.len(), 1);
        assert_eq!(server.queries("pods.test"), 2);

        server.set("pods.test", Answer::ServerFailure);
        let reply = Message::from_vec(&ask(&server, "pods.test", RecordType::A).await).unwrap();
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
        let reply = Message::from_vec(&ask(&server, "stranger.test", RecordType::A).await).unwrap();
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
        server.set("pods.test", Answer::Garbage);
        assert!(Message::from_vec(&ask(&server, "pods.test", RecordType::A).await).is_err());
    }

    #[tokio::test]
    async fn a_long_answer_is_cut_on_udp_and_whole_on_tcp() {
        let server = DnsServer::start().await.unwrap();
        let many = (0..200)
            .map(|last| IpAddr::from([127, 0, 1, last]))
            .collect();
        server.set("pods.test", Answer::Addresses(many));
        let reply = Message::from_vec(&ask(&server, "pods.test", RecordType::A).await).unwrap();
        assert!(reply.metadata.truncation);

        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        let query = query("pods.test", RecordType::A);
        stream.write_u16(query.len() as u16).await.unwrap();
        stream.write_all(&query).await.unwrap();
        let mut bytes = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut bytes).await.unwrap();
        assert_eq!(Message::from_vec(&bytes).unwrap().answers.len(), 200);
    }
}
