//! A network namespace with a link to it, and what can be done to it there.
//!
//! It has no name, and lives as long as a program in it, `cat`, that waits for the end of its input. So it goes, and the
//! interfaces with it, however this process ends; when it is killed, once the kernel has given up what was to be sent there,
//! minutes later. Nothing is changed outside of it but its own end of the link, and sockets whose peer is its address.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Gone with this value.
pub(super) struct Namespace {
    holder: Child,
    /// This side's interface, and the other's.
    near: String,
    far: String,
    address: Ipv4Addr,
}

impl Namespace {
    /// # Errors
    /// What is missing: root, a tool, a part of the kernel.
    pub(super) fn new() -> anyhow::Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "this takes root");
        let mut holder = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("there is no unshare")?;
        let process = holder.id();
        let answered = answer(&mut holder);
        let namespace = Self {
            holder,
            // At most 15 bytes, and a process id has 7 at most.
            near: format!("ee{process}a"),
            far: format!("ee{process}b"),
            address: free_net(process)?,
        };
        answered?;
        let (near, far) = (&namespace.near, &namespace.far);
        let [a, b, c, last] = namespace.address.octets();
        let (here, there) = (Ipv4Addr::new(a, b, c, last - 1), namespace.address);
        let link = format!("link add {near} type veth peer name {far} netns {process}");
        succeeds("ip", &words(&link))?;
        succeeds("ip", &words(&format!("addr add {here}/30 dev {near}")))?;
        succeeds("ip", &words(&format!("link set {near} up")))?;
        namespace.run("ip", &words(&format!("addr add {there}/30 dev {far}")))?;
        namespace.run("ip", &words(&format!("link set {far} up")))?;
        // ICMP isn't to be sparing with what it answers.
        let sparing = "echo 0 > /proc/sys/net/ipv4/icmp_ratelimit";
        namespace.run("sh", &["-c", sparing])?;
        Ok(namespace)
    }

    /// Runs a program there; its output.
    ///
    /// # Errors
    /// When there is none, or it doesn't succeed, and what it says then.
    pub(super) fn run(&self, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let network = format!("--net={}", self.network());
        let mut all = vec![network.as_str(), program];
        all.extend(arguments);
        succeeds("nsenter", &all)
    }

    /// A socket belongs to the namespace that its thread was in when it was made.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn listener(&self) -> anyhow::Result<TcpListener> {
        let namespace = File::open(self.network())?;
        let address = SocketAddr::from((self.address, 0));
        let there = std::thread::spawn(move || {
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), network)?;
            TcpListener::bind(address)
        });
        let bound: io::Result<_> = there.join().expect("binding doesn't panic");
        bound.with_context(|| format!("cannot listen on {address}"))
    }

    /// Why there can't be these rules of nftables; `None`: there can.
    ///
    /// # Errors
    /// When they are wrong.
    pub(super) fn lacks(&self, rules: &str) -> anyhow::Result<Option<anyhow::Error>> {
        // What nft itself understands, and the kernel doesn't have.
        let told = |why: &anyhow::Error| why.to_string().contains("Could not process rule");
        match self.run("nft", &["--check", rules]) {
            Ok(_) => Ok(None),
            Err(why) if told(&why) || self.run("nft", &["--version"]).is_err() => Ok(Some(why)),
            Err(why) => Err(why),
        }
    }

    /// The link takes so many bytes a second each way, and what waits longer than 200 ms is lost.
    ///
    /// # Errors
    /// When there is no `tc`, or the kernel has no `tbf`.
    pub(super) fn narrow(&self, rate: u32) -> anyhow::Result<()> {
        let tbf = format!(
            "root tbf rate {}bit burst 16kb latency 200ms",
            8 * u64::from(rate)
        );
        let command = |device| format!("qdisc add dev {device} {tbf}");
        succeeds("tc", &words(&command(&self.near)))?;
        self.run("tc", &words(&command(&self.far)))?;
        Ok(())
    }

    /// # Errors
    /// When there is no `ss`, or the kernel doesn't destroy sockets for it.
    pub(super) fn can_destroy(&self) -> anyhow::Result<()> {
        let listener = self.listener()?;
        let address = listener.local_addr()?;
        let _peer = TcpStream::connect(address)?;
        let _accepted = listener.accept()?;
        ensure!(
            self.destroy_there(address)? > 0,
            "the kernel destroys no socket for `ss -K` (CONFIG_INET_DIAG_DESTROY)"
        );
        Ok(())
    }

    /// Destroys connections to `address` at the ends that are there; how many.
    ///
    /// # Errors
    /// When `ss` can't be run.
    pub(super) fn destroy_there(&self, address: SocketAddr) -> anyhow::Result<usize> {
        let ends = format!("{DESTROY} src {} sport = :{}", address.ip(), address.port());
        Ok(self.run("ss", &words(&ends))?.lines().count())
    }

    /// As [`destroy_there`](Self::destroy_there), at the ends that are here: they have that peer, and nobody else has it.
    ///
    /// # Errors
    /// When `ss` can't be run.
    pub(super) fn destroy_here(&self, address: SocketAddr) -> anyhow::Result<usize> {
        let ends = format!("{DESTROY} dst {} dport = :{}", address.ip(), address.port());
        Ok(succeeds("ss", &words(&ends))?.lines().count())
    }

    fn network(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The interfaces and all else go with the namespace; at once, if the link goes before. It may not be there yet.
        let _ = succeeds("ip", &["link", "delete", &self.near]);
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Once `cat` answers, it is in its namespace.
fn answer(holder: &mut Child) -> anyhow::Result<()> {
    // What it is for stays open; if it has ended, its reason is read below.
    if let Some(stdin) = &mut holder.stdin {
        let _ = stdin.write_all(b"there\n");
    }
    let mut line = String::new();
    if let Some(stdout) = &mut holder.stdout {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    if line != "there\n" {
        let mut why = String::new();
        if let Some(stderr) = &mut holder.stderr {
            stderr.read_to_string(&mut why)?;
        }
        anyhow::bail!("no network namespace: {}", why.trim());
    }
    Ok(())
}

/// The last usable address of a net of four, of those that are for documentation (RFC 5737), in which no interface is. They
/// are also what virtual machines are connected by.
fn free_net(process: u32) -> anyhow::Result<Ipv4Addr> {
    let interfaces = succeeds("ip", &words("-4 -oneline address show"))?;
    let taken: Vec<_> = interfaces.lines().filter_map(network).collect();
    unused_net(process, &taken).context("all nets for documentation are in use")
}

/// What an interface reaches directly, of a line of `ip address`: its address and the length of its prefix.
fn network(line: &str) -> Option<(Ipv4Addr, u32)> {
    let mut words = line.split_whitespace();
    let (address, prefix) = words
        .find(|word| *word == "inet")
        .and(words.next())?
        .split_once('/')?;
    Some((address.parse().ok()?, prefix.parse().ok()?))
}

fn unused_net(process: u32, taken: &[(Ipv4Addr, u32)]) -> Option<Ipv4Addr> {
    let mut nets = (0..192).map(|number| {
        let number = (process + number) % 192;
        let [a, b, c] = [[192, 0, 2], [198, 51, 100], [203, 0, 113]][number as usize / 64];
        Ipv4Addr::new(a, b, c, 4 * (number % 64) as u8 + 2)
    });
    nets.find(|net| {
        !taken.iter().any(|(address, prefix)| {
            // The shorter of two prefixes decides whether they overlap.
            let differ = net.to_bits() ^ address.to_bits();
            differ.checked_shr(32 - (*prefix).min(30)).unwrap_or(0) == 0
        })
    })
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

fn succeeds(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let told = || format!("{program} {}", arguments.join(" "));
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(told)?;
    let why = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}", told(), why.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// TCP connections, without a heading, and a line for each that was destroyed.
const DESTROY: &str = "--kill --no-header --numeric --tcp state established";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_net_is_taken_in_which_no_interface_is() {
        let lines = "1: lo    inet 127.0.0.1/8 scope host lo\n\
                     4: eth0    inet 192.0.2.2/24 brd 192.0.2.255 scope global eth0\n\
                     9: ee7a    inet 198.51.100.1/30 scope global ee7a";
        let taken: Vec<_> = lines.lines().filter_map(network).collect();
        assert_eq!(taken.len(), 3);
        // Neither the machine's own network nor another namespace's.
        for process in [0, 63, 64, 192] {
            let net = unused_net(process, &taken);
            assert_eq!(net, Some(Ipv4Addr::new(198, 51, 100, 6)), "{process}");
        }
        let last = unused_net(191, &taken);
        assert_eq!(last, Some(Ipv4Addr::new(203, 0, 113, 254)));
        let everywhere = [(Ipv4Addr::new(10, 0, 0, 1), 0)];
        assert_eq!(unused_net(0, &everywhere), None);
    }
}
