//! Any answers of a name server, through the resolver, to the set of endpoints: what the fuzz target calls.
//!
//! The input is cut into answers. A name server on the loopback interface says them, one for each question that it is asked,
//! the way its first byte says: behind the question's own id and text, or as it is. What must hold: no panic,
//! every look-up ends, a member is dropped only by an answer that may, and a failed look-up changes nothing.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use tokio::net::UdpSocket;

use super::{Answer, Lookup, Membership, Resolver};
use crate::control_plane::{
    config::{LookupFamily, Target},
    status::Standing,
};

/// See the module's head.
///
/// # Panics
/// When something doesn't hold: that is what it is for.
pub fn exercise_dns_answers(input: &[u8]) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    // Deadlines pass when nothing else can happen. A datagram on the loopback is there at once.
    let runtime = runtime.enable_all().start_paused(true).build();
    runtime
        .expect("a runtime needs a few files")
        .block_on(exercise(input));
}

async fn exercise(input: &[u8]) {
    let (&kind, mut input) = input.split_first().unwrap_or((&0, &[]));
    let socket = UdpSocket::bind(("127.0.0.1", 0)).await;
    let socket = Arc::new(socket.expect("a port on the loopback interface"));
    let address = socket.local_addr().expect("it is bound");
    let resolver = Resolver::new(&[address]);
    let target = Target {
        host: "a.test.".into(),
        port: 8081,
    };
    let family = [
        LookupFamily::V4Only,
        LookupFamily::V6Only,
        LookupFamily::Auto,
    ][usize::from(kind % 3)];
    let checked = kind & 64 == 0;
    let mut membership = Membership::new(1, checked);
    for _ in 0..MOST_ANSWERS {
        let Some((&length, rest)) = input.split_first() else {
            break;
        };
        let (said, rest) = rest.split_at(usize::from(length).min(rest.len()));
        input = rest;
        let server = tokio::spawn(say(socket.clone(), said.to_vec()));
        let at_six = membership.listed(0).any(|address| address.is_ipv6());
        let lookup: Lookup = resolver.look_up(&target, family, at_six).await;
        server.abort();

        let healthy = |address: SocketAddr| {
            address.ip().is_loopback() || said.first().is_some_and(|&first| first & 128 == 128)
        };
        let before: BTreeSet<_> = members(&membership);
        membership.answer(0, lookup.answer.clone());
        let change = membership.settle(healthy);
        let after = members(&membership);
        for address in before.difference(&after) {
            assert!(change.removed.contains(address));
        }
        match &lookup.answer {
            Answer::Addresses(addresses) => {
                assert!(!addresses.is_empty());
                for address in addresses {
                    assert_eq!(address.port(), target.port);
                    assert_eq!(membership.standing(*address), Some(Standing::Listed));
                }
            }
            Answer::Empty => {
                let kept = before
                    .iter()
                    .filter(|address| !checked || healthy(**address));
                assert!(kept.into_iter().all(|address| after.contains(address)));
            }
            Answer::Failed => assert!(after.is_subset(&before)),
        }
        assert!(after.len() <= before.len() + MOST_ADDRESSES);
    }
}

/// All that are known to be members: those that were ever named are asked for.
fn members(membership: &Membership) -> BTreeSet<SocketAddr> {
    membership.members().collect()
}

/// Answers every question with the same.
async fn say(socket: Arc<UdpSocket>, said: Vec<u8>) {
    let mut question = vec![0; 1024];
    while let Ok((n, from)) = socket.recv_from(&mut question).await {
        let question = &question[..n];
        let mut answer = Vec::new();
        match said.split_first() {
            // As it is: hardly ever the question's id.
            Some((first, rest)) if first % 8 == 0 => answer.extend(rest),
            // A header of the right id, with these flags and counts; then the question, and what follows it.
            Some((_, rest)) if n > HEADER => {
                let (mut flags, rest) = rest.split_at(rest.len().min(HEADER - 2));
                answer.extend(&question[..2]);
                let mut header = [0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
                if let Some((&rcode, counts)) = flags.split_first() {
                    header[1] |= rcode & 15;
                    flags = counts;
                }
                for (at, byte) in header[5..].iter_mut().zip(flags) {
                    *at = *byte;
                }
                answer.extend(header);
                // Its own additional records (EDNS) aren't a part of the question.
                let name = question[HEADER..].iter().position(|&byte| byte == 0);
                let end = name.map_or(n, |at| (HEADER + at + 5).min(n));
                answer.extend(&question[HEADER..end]);
                answer.extend(rest);
            }
            _ => {}
        }
        // Nobody listens any more: then nobody is missed.
        let _ = socket.send_to(&answer, from).await;
    }
}

/// Look-ups in one input.
const MOST_ANSWERS: usize = 4;
/// A message of 64 KiB can't hold more.
const MOST_ADDRESSES: usize = 6_000;
/// Of a DNS message (RFC 1035 §4.1.1).
const HEADER: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_for_what_they_are() {
        // Two addresses, then garbage, SERVFAIL, no such name, silence.
        let record = |last: u8| {
            let head = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4];
            [&head[..], &[127, 0, 0, last]].concat()
        };
        let answers: [Vec<u8>; 4] = [
            [
                &[1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0][..],
                &record(1),
                &record(2),
            ]
            .concat(),
            vec![8, 1, 2, 3, 4],
            vec![1, 2, 0, 0, 0, 0, 0, 0],
            vec![1, 3, 0, 0, 0, 0, 0, 0],
        ];
        let mut input = vec![0];
        for answer in answers {
            input.push(answer.len() as u8);
            input.extend(answer);
        }
        exercise_dns_answers(&input);
        exercise_dns_answers(&[]);
        exercise_dns_answers(&[255; 600]);
    }
}
