//! What is to happen, what happened, and whether that is allowed.
//!
//! Every RPC has a [`Plan`], drawn before anything begins, which its client and its backend both follow. Whatever goes
//! wrong on purpose is noted as a [`Fault`] with the time in which it can be felt. At the end [`judge`](World::judge)
//! looks at each RPC: it must have ended, once, no more than one backend may have executed it, and an ending that isn't the planned
//! one needs a fault that explains it.

use std::{
    cell::{Cell, RefCell},
    fmt,
    hash::{BuildHasher as _, Hasher as _},
    time::Duration,
};

use http2::Reason;
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use tokio::time::Instant;

/// Everything that both sides know.
pub(super) struct World {
    start: Instant,
    trace: RefCell<Trace>,
    random: RefCell<SmallRng>,
    pub(super) rpcs: RefCell<Vec<Rpc>>,
    faults: RefCell<Vec<Fault>>,
    problems: RefCell<Vec<String>>,
    /// Backends' handlers that run.
    pub(super) handlers: Cell<usize>,
    /// No new connections of clients are accepted.
    pub(super) shut: Cell<bool>,
    /// What a cluster keeps of a request for another attempt.
    pub(super) replayable: usize,
}

/// One RPC: what it is to be, and what became of it.
pub(super) struct Rpc {
    pub(super) plan: Plan,
    begun: Option<Duration>,
    ending: Option<(Duration, Ending)>,
    /// By which backend, and how that ended.
    executions: Vec<(usize, Option<&'static str>)>,
    /// How often a backend refused it.
    pub(super) refusals: usize,
}

/// What an RPC is to be.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) client: usize,
    pub(super) at: Duration,
    /// Lengths of messages.
    pub(super) request: Vec<usize>,
    pub(super) response: Vec<usize>,
    /// Between two messages, on average.
    pub(super) request_gap: Duration,
    pub(super) response_gap: Duration,
    /// The backend, then the client wait so long before they take what arrived.
    pub(super) backend_reads: Duration,
    pub(super) client_reads: Duration,
    pub(super) answer: Answer,
    /// The first backends refuse it.
    pub(super) refusals: usize,
    pub(super) cancel: Option<Duration>,
    pub(super) deadline: Option<Duration>,
}

/// What the backend does with an RPC that it has accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Answers when the request has ended.
    Unary,
    /// Answers while it comes.
    Stream,
    /// Answers, and reads nothing of it.
    Early,
    /// Never answers.
    Hang,
    /// Answers with this status and nothing else.
    Status(u32),
    /// Resets the stream before its head, or after the first message.
    ResetBefore,
    ResetAfter,
}

/// How an RPC ended, to its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// grpc-status, and its message.
    Status(u32, String),
    /// RST_STREAM.
    Reset(Reason),
    /// Its connection ended.
    Gone,
    /// It was cancelled, by itself.
    Cancelled,
    /// No connection was to be had.
    NoConnection,
}

/// Something that went wrong on purpose.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    pub(super) from: Duration,
    pub(super) until: Duration,
    pub(super) what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A client's connection was cut.
    ClientCut(usize),
    /// A client's connection carries nothing.
    ClientStall(usize),
    /// Connections to this backend end under what runs on them.
    Lost(usize),
    /// Connections to this backend can't be opened, carry nothing, or have no room.
    Unreachable(usize),
    /// A connection to this backend got its GOAWAY: what comes later is refused there.
    Leaving(usize),
    /// No endpoint may be used.
    NoEndpoint,
}

/// A hash of everything that happened, in order.
struct Trace {
    hasher: foldhash::fast::FoldHasher<'static>,
    events: usize,
    print: bool,
}

impl World {
    pub(super) fn new(seed: u64, replayable: usize, print: bool) -> Self {
        Self {
            start: Instant::now(),
            trace: RefCell::new(Trace {
                hasher: foldhash::fast::FixedState::default().build_hasher(),
                events: 0,
                print,
            }),
            random: RefCell::new(SmallRng::seed_from_u64(seed)),
            rpcs: RefCell::default(),
            faults: RefCell::default(),
            problems: RefCell::default(),
            handlers: Cell::new(0),
            shut: Cell::new(false),
            replayable,
        }
    }

    /// A generator of its own for whoever acts, so that what one does shifts nobody else's numbers.
    pub(super) fn random(&self) -> SmallRng {
        SmallRng::seed_from_u64(self.random.borrow_mut().random())
    }

    /// Since the start.
    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Something happened.
    pub(super) fn note(&self, what: fmt::Arguments<'_>) {
        let line = format!("{:>9.3} {what}", self.now().as_secs_f64());
        self.hash(line.as_bytes());
        if self.trace.borrow().print {
            eprintln!("{line}");
        }
    }

    /// Bytes went by.
    pub(super) fn hash(&self, bytes: &[u8]) {
        let mut trace = self.trace.borrow_mut();
        trace.events += 1;
        trace.hasher.write(bytes);
    }

    pub(super) fn trace(&self) -> (u64, usize) {
        let trace = self.trace.borrow();
        (trace.hasher.finish(), trace.events)
    }

    /// What must not be.
    pub(super) fn problem(&self, what: String) {
        self.note(format_args!("PROBLEM {what}"));
        self.problems.borrow_mut().push(what);
    }

    pub(super) fn problems(&self) -> Vec<String> {
        self.problems.borrow().clone()
    }

    /// Something goes wrong now, and is felt for so long.
    pub(super) fn fault(&self, what: What, long: Duration) {
        let from = self.now();
        self.note(format_args!("fault {what:?} for {long:?}"));
        let until = from + long;
        self.faults.borrow_mut().push(Fault { from, until, what });
    }

    /// It is right again: what begins later has nothing of it.
    pub(super) fn over(&self, what: What) {
        let now = self.now();
        for fault in self.faults.borrow_mut().iter_mut() {
            if fault.what == what {
                fault.until = fault.until.min(now);
            }
        }
    }

    pub(super) fn add(&self, plan: Plan) {
        self.rpcs.borrow_mut().push(Rpc {
            plan,
            begun: None,
            ending: None,
            executions: Vec::new(),
            refusals: 0,
        });
    }

    pub(super) fn plan(&self, rpc: usize) -> Plan {
        self.rpcs.borrow()[rpc].plan.clone()
    }

    pub(super) fn begun(&self, rpc: usize) {
        self.note(format_args!("rpc {rpc} begins"));
        self.rpcs.borrow_mut()[rpc].begun = Some(self.now());
    }

    pub(super) fn ended(&self, rpc: usize, ending: Ending) {
        self.note(format_args!("rpc {rpc} ends: {ending:?}"));
        let again = {
            let mut rpcs = self.rpcs.borrow_mut();
            rpcs[rpc].ending.replace((self.now(), ending)).is_some()
        };
        if again {
            self.problem(format!("rpc {rpc} ended twice"));
        }
    }

    /// A backend's application has it now; which execution that is.
    pub(super) fn executed(&self, rpc: usize, backend: usize) -> usize {
        self.note(format_args!("rpc {rpc} is executed by backend {backend}"));
        let executions = &mut self.rpcs.borrow_mut()[rpc].executions;
        executions.push((backend, None));
        executions.len() - 1
    }

    pub(super) fn execution_ended(&self, rpc: usize, execution: usize, how: &'static str) {
        self.note(format_args!("rpc {rpc}: its handler ends: {how}"));
        self.rpcs.borrow_mut()[rpc].executions[execution].1 = Some(how);
    }

    /// Every RPC whose history isn't allowed is a problem.
    pub(super) fn judge(&self) {
        let rpcs = self.rpcs.take();
        // They hold their connection's window, and so the others' bytes.
        let slow = rpcs.iter().filter(|rpc| !rpc.plan.client_reads.is_zero());
        let slow: Vec<_> = slow.map(|rpc| rpc.plan.client).collect();
        for (id, rpc) in rpcs.iter().enumerate() {
            if let Err(why) = self.verdict(rpc, &slow, may_give_way(rpc, &rpcs)) {
                self.problem(format!(
                    "rpc {id}: {why}: {:?}, begun {:?}, ended {:?}, executed {:?}, refused {} times",
                    rpc.plan, rpc.begun, rpc.ending, rpc.executions, rpc.refusals
                ));
            }
        }
        *self.rpcs.borrow_mut() = rpcs;
    }

    fn verdict(&self, rpc: &Rpc, read_slowly: &[usize], may_give_way: bool) -> Result<(), String> {
        let (Some(begun), Some((ended, ending))) = (rpc.begun, &rpc.ending) else {
            return Err("lost: it never ended".to_owned());
        };
        let plan = &rpc.plan;
        if rpc.executions.len() > 1 {
            return Err("executed more than once".to_owned());
        }
        let execution = rpc.executions.first().copied();
        let felt = |is_it: &dyn Fn(What) -> bool| {
            let faults = self.faults.borrow();
            faults
                .iter()
                .any(|fault| is_it(fault.what) && fault.from <= *ended && fault.until >= begun)
        };
        let client_faulty = felt(
            &|what| matches!(what, What::ClientCut(client) | What::ClientStall(client) if client == plan.client),
        );
        if let Some(deadline) = plan.deadline
            && !client_faulty
            && !read_slowly.contains(&plan.client)
            && *ended > begun + deadline + SLACK
        {
            return Err("ended long after its deadline".to_owned());
        }
        let lost = |at: usize| felt(&|what| what == What::Lost(at));
        let any_lost = felt(&|what| matches!(what, What::Lost(_)));
        let unreachable = felt(&|what| matches!(what, What::Unreachable(_) | What::Lost(_)));
        // Another attempt costs nothing when nothing had been sent; else there must be all of the request.
        let whole = plan.request.iter().map(|n| n + 5).sum::<usize>() <= self.replayable;
        let failed_attempts = |which: &dyn Fn(What) -> bool| {
            let faults = self.faults.borrow();
            let felt =
                |fault: &&Fault| which(fault.what) && fault.from <= *ended && fault.until >= begun;
            faults.iter().filter(felt).count()
        };
        let leaving = failed_attempts(&|what| matches!(what, What::Leaving(_)));
        let refusals = rpc.refusals + leaving;
        let others = failed_attempts(&|what| matches!(what, What::Unreachable(_) | What::Lost(_)));
        let refused = refusals > 0 && (refusals >= 3 || others > 0 || !whole);
        let allowed = match ending {
            Ending::Cancelled => plan.cancel.is_some(),
            Ending::NoConnection => self.shut.get(),
            Ending::Gone => felt(&|what| what == What::ClientCut(plan.client)),
            Ending::Reset(reason) => {
                // What was cut short and isn't read is reset in the end.
                let cut_short = execution.is_some_and(|(at, _)| lost(at))
                    || matches!(plan.answer, Answer::ResetAfter)
                    || plan
                        .deadline
                        .is_some_and(|deadline| *ended + AT_DEADLINE >= begun + deadline);
                *reason == Reason::CANCEL && cut_short
            }
            Ending::Status(0, _) => {
                let answers = matches!(plan.answer, Answer::Unary | Answer::Stream | Answer::Early);
                // A backend that is lost behind its last word doesn't know that it was heard.
                answers && execution.is_some_and(|(at, how)| how == Some(ANSWERED) || lost(at))
            }
            Ending::Status(4, _) => plan
                .deadline
                .is_some_and(|deadline| *ended + AT_DEADLINE >= begun + deadline),
            Ending::Status(14, text) if text == "no healthy upstream" => {
                execution.is_none() && felt(&|what| what == What::NoEndpoint)
            }
            Ending::Status(14, text) if text.ends_with("remote reset") => match execution {
                Some(_) => matches!(plan.answer, Answer::ResetBefore | Answer::ResetAfter),
                None => refused,
            },
            Ending::Status(14, text) if text.ends_with("connection termination") => match execution
            {
                Some((at, _)) => lost(at),
                None => any_lost || (leaving > 0 && !whole),
            },
            Ending::Status(14, text)
                if text.ends_with("connection failure") || text.ends_with("connection timeout") =>
            {
                execution.is_none() && unreachable
            }
            Ending::Status(8, text) if text.starts_with("ended for others") => may_give_way,
            Ending::Status(status, _) => {
                plan.answer == Answer::Status(*status) && execution.is_some()
            }
        };
        if allowed {
            Ok(())
        } else {
            Err("its ending isn't explained".to_owned())
        }
    }
}

/// Whether its client had another RPC when it ended, and another client one too.
fn may_give_way(rpc: &Rpc, rpcs: &[Rpc]) -> bool {
    let Some((at, _)) = &rpc.ending else {
        return false;
    };
    let runs = |other: &Rpc| {
        let has_ended = other.ending.as_ref().is_some_and(|(ended, _)| ended < at);
        other.begun.is_some_and(|begun| begun <= *at) && !has_ended
    };
    let of = |own: bool| {
        let mut others = rpcs.iter().filter(|other| !std::ptr::eq(*other, rpc));
        others.any(|other| (other.plan.client == rpc.plan.client) == own && runs(other))
    };
    of(true) && of(false)
}

/// How a handler says that it has answered.
pub(super) const ANSWERED: &str = "answered";

/// How long after its deadline an RPC may end: what lies in lanes, what its client doesn't take.
const SLACK: Duration = Duration::from_secs(20);

/// The messages of one half of an RPC, as gRPC frames them, of which each byte is known.
pub(super) fn messages(rpc: usize, lengths: &[usize]) -> Vec<Vec<u8>> {
    let message = |(number, length): (usize, &usize)| {
        let mut message = vec![0];
        message.extend((*length as u32).to_be_bytes());
        message.extend((0..*length).map(|at| (rpc * 31 + number * 7 + at) as u8));
        message
    };
    lengths.iter().enumerate().map(message).collect()
}

/// What ends an RPC so shortly before its deadline is the deadline, by the backend's clock.
const AT_DEADLINE: Duration = Duration::from_millis(5);
