//! A name server for the tests: a UDP socket (and a TCP one on the same port) that answers as it is told.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_resolver::proto::{
    op::{Message, MessageType, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME},
    },
};
use tokio::net::UdpSocket;

/// What happens to one question.
#[derive(Clone, Debug)]
pub(in crate::control_plane) enum Reply {
    /// The addresses of the asked type, all of them under the asked name.
    Addresses(Vec<IpAddr>),
    /// An alias, and the addresses of that.
    Alias(IpAddr),
    /// An alias of one more label, without addresses.
    Further,
    /// No records, with this response code.
    Code(ResponseCode),
    /// Bytes that aren't DNS.
    Garbage,
    /// Nothing.
    Silence,
    /// Addresses, after so long.
    Late(Duration, Vec<IpAddr>),
}

/// The running name server; it ends with the test's runtime.
#[derive(Debug)]
pub(in crate::control_plane) struct NameServer {
    pub(in crate::control_plane) address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl NameServer {
    /// Answers each question as `reply` says.
    pub(in crate::control_plane) async fn start(
        reply: impl Fn(&str, RecordType) -> Reply + Send + 'static,
    ) -> Self {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let server = Self {
            address: socket.local_addr().unwrap(),
            asked: Arc::default(),
        };
        let asked = server.asked.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                asked.fetch_add(1, Ordering::Relaxed);
                let question = Message::from_vec(&buffer[..length]).unwrap();
                let query = question.queries[0].clone();
                let reply = reply(&query.name().to_string(), query.query_type());
                let (after, reply) = match reply {
                    Reply::Late(after, addresses) => (after, Reply::Addresses(addresses)),
                    reply => (Duration::ZERO, reply),
                };
                let Some(answer) = answer(&question, &query, reply) else {
                    continue;
                };
                let socket = socket.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    socket.send_to(&answer, from).await.unwrap();
                });
            }
        });
        server
    }

    /// Questions so far.
    pub(in crate::control_plane) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn answer(question: &Message, query: &Query, reply: Reply) -> Option<Vec<u8>> {
    let mut message = Message::response(question.metadata.id, question.metadata.op_code);
    message.metadata.message_type = MessageType::Response;
    message.metadata.recursion_available = true;
    message.add_query(query.clone());
    let record = |name: &Name, address: IpAddr| {
        let data = match address {
            IpAddr::V4(v4) => RData::A(A(v4)),
            IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
        };
        Record::from_rdata(name.clone(), 30, data)
    };
    match reply {
        Reply::Addresses(addresses) => {
            for address in addresses {
                let kind = if address.is_ipv4() {
                    RecordType::A
                } else {
                    RecordType::AAAA
                };
                if kind == query.query_type() {
                    message.add_answer(record(query.name(), address));
                }
            }
        }
        Reply::Alias(address) => {
            let alias = Name::from_ascii("alias.example.").unwrap();
            let cname = RData::CNAME(CNAME(alias.clone()));
            message.add_answer(Record::from_rdata(query.name().clone(), 30, cname));
            message.add_answer(record(&alias, address));
        }
        Reply::Further => {
            let alias = Name::from_ascii("alias").unwrap();
            let alias = alias.append_domain(query.name()).unwrap();
            let cname = RData::CNAME(CNAME(alias));
            message.add_answer(Record::from_rdata(query.name().clone(), 30, cname));
        }
        Reply::Code(code) => {
            message.metadata.response_code = code;
        }
        Reply::Garbage => return Some(b"this is not DNS".to_vec()),
        Reply::Silence | Reply::Late(..) => return None,
    }
    Some(message.to_vec().unwrap())
}
