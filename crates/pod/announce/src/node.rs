//! This node among the others: what is heard, known and seen becomes a plan, and the plan becomes open sockets.

use crate::alive::{Alive, BEAT};
use crate::answer::Responder;
use crate::beat::{self, Heard, Speaker, Word};
use crate::links;
use crate::plan::{self, Facts, Link, Plan, Step};
use anyhow::Context as _;
use keelson_network::underlay::Changes;
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::task::Poll;
use std::time::Duration;
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

/// When neighbours are told of an address that this node has taken over: packets get lost, and switches learn slowly.
const TOLD: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];
/// Who leaves says so each time after so long: a message may be lost.
const FAREWELLS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(20), Duration::from_millis(60)];
/// After this a link that couldn't be opened is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Changes of links come in storms.
const QUIET: Duration = Duration::from_millis(100);

#[derive(Clone, Debug)]
pub struct Settings {
    pub name: String,
    /// By which the others reach this node, and where it hears them.
    pub addresses: Vec<IpAddr>,
    pub port: u16,
}

/// Until `stop` fires. Of the network namespace in which it is called. The links on which it could answer are told.
pub async fn run(
    settings: Settings,
    speaker: Speaker,
    facts: watch::Receiver<Facts>,
    seen: watch::Sender<Vec<Link>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let node = Node {
        speaker,
        sockets: Vec::new(),
        alive: Alive::default(),
        living: BTreeSet::new(),
        plan: Plan::new(),
        open: BTreeMap::new(),
        due: BTreeSet::new(),
        retry: None,
        settings,
    };
    let (links, also) = (seen.subscribe(), facts.clone());
    tokio::select! {
        done = follow(node, facts, links, stop) => done,
        failed = follow_links(seen, also) => failed,
    }
}

/// Never ends well. Nobody looks at links before something is announced.
async fn follow_links(seen: watch::Sender<Vec<Link>>, mut facts: watch::Receiver<Facts>) -> anyhow::Result<()> {
    facts.wait_for(|facts| facts.announced).await?;
    let mut changes = Changes::listen()?;
    loop {
        let links = links::read().context("reading this machine's links")?;
        seen.send_if_modified(|before| {
            let differs = *before != links;
            *before = links;
            differs
        });
        changes.wait(QUIET).await;
    }
}

async fn follow(
    mut node: Node,
    mut facts: watch::Receiver<Facts>,
    mut links: watch::Receiver<Vec<Link>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut buffer = [0; beat::LONGEST];
    loop {
        let now = facts.borrow_and_update().clone();
        let here = links.borrow_and_update().clone();
        node.listen(now.announced).await?;
        node.know(&now);
        node.act(&now, &here);
        // Until something has changed that could change the plan.
        loop {
            let due = node.next();
            tokio::select! {
                () = stop.cancelled() => {
                    node.open.clear();
                    for after in FAREWELLS {
                        sleep(after).await;
                        node.say(Word::Leaves, &now);
                    }
                    return Ok(());
                }
                changed = facts.changed() => {
                    changed.context("nobody tells of services any more")?;
                    break;
                }
                changed = links.changed() => {
                    changed.context("nobody tells of links any more")?;
                    break;
                }
                _ = beat.tick(), if !node.sockets.is_empty() => node.say(Word::Alive, &now),
                (length, from) = hear(&node.sockets, &mut buffer), if !node.sockets.is_empty() => {
                    if !node.hear(&buffer[..length], from, &now) {
                        continue;
                    }
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => node.tell_neighbours(),
            }
            // Whatever came first: at the same moment somebody may have died, and no timer stands for that any more.
            if node.has_changed() {
                break;
            }
        }
    }
}

struct Node {
    settings: Settings,
    speaker: Speaker,
    /// One for each of the node's addresses; none while nothing is announced. What comes faster than signatures are looked at waits in
    /// the kernel's queue of the socket and is lost beyond: so a flood can make the others seem dead, and two nodes answer while it lasts.
    sockets: Vec<UdpSocket>,
    alive: Alive,
    /// Those that the plan was made for.
    living: BTreeSet<String>,
    plan: Plan,
    open: BTreeMap<u32, Responder>,
    /// When neighbours are to be told of an address again.
    due: BTreeSet<(Instant, u32, IpAddr)>,
    /// When what failed is tried again.
    retry: Option<Instant>,
}

/// The next datagram of any of the sockets. What can't be read is none.
async fn hear(sockets: &[UdpSocket], buffer: &mut [u8]) -> (usize, IpAddr) {
    poll_fn(|context| {
        for socket in sockets {
            let mut read = ReadBuf::new(buffer);
            while let Poll::Ready(got) = socket.poll_recv_from(context, &mut read) {
                if let Ok(from) = got {
                    return Poll::Ready((read.filled().len(), from.ip()));
                }
                read.clear();
            }
        }
        Poll::Pending
    })
    .await
}

impl Node {
    /// Hears the others while something is announced. Who begins to hear knows of nobody whether he lives.
    async fn listen(&mut self, announced: bool) -> anyhow::Result<()> {
        if !announced {
            self.sockets.clear();
            self.alive = Alive::default();
            return Ok(());
        }
        if self.sockets.is_empty() {
            for address in &self.settings.addresses {
                let at = SocketAddr::new(*address, self.settings.port);
                let socket = UdpSocket::bind(at).await;
                self.sockets
                    .push(socket.with_context(|| format!("cannot hear other nodes at {at}"))?);
            }
        }
        Ok(())
    }

    fn know(&mut self, facts: &Facts) {
        if self.sockets.is_empty() {
            return;
        }
        self.alive.look(Instant::now());
        let me = &self.settings.name;
        let others = facts.nodes.iter().filter(|(name, _)| *name != me);
        let keys = others.filter_map(|(name, node)| Some((name, node.shown.as_ref()?.key)));
        self.alive.know(keys, Instant::now());
    }

    /// To each of the others, at one of its addresses. What can't be sent at once is lost, and the next one isn't.
    fn say(&mut self, word: Word, facts: &Facts) {
        let message = self.speaker.say(word);
        for (_, node) in facts.nodes.iter().filter(|(name, _)| **name != self.settings.name) {
            let ways = node.addresses.iter().filter_map(|to| {
                let of_family = |s: &&UdpSocket| s.local_addr().is_ok_and(|own| own.is_ipv4() == to.is_ipv4());
                Some((self.sockets.iter().find(of_family)?, *to))
            });
            if let Some((socket, to)) = ways.into_iter().next().filter(|_| node.shown.is_some()) {
                let _ = socket.try_send_to(&message, SocketAddr::new(to, self.settings.port));
            }
        }
    }

    /// Who isn't known to be there, or there under another address, isn't asked for his signature. False: it counts for nothing.
    fn hear(&mut self, message: &[u8], from: IpAddr, facts: &Facts) -> bool {
        self.alive.look(Instant::now());
        let Some(heard) = Heard::read(message) else {
            return false;
        };
        let known = facts
            .nodes
            .get(heard.name)
            .is_some_and(|node| node.addresses.contains(&from));
        let counts = known && self.alive.key(heard.name).is_some_and(|key| heard.is_of(key));
        if counts {
            self.alive.hear(heard.name, heard.number, heard.word, Instant::now());
        }
        counts
    }

    fn next(&self) -> Option<Instant> {
        let told = self.due.first().map(|(at, ..)| *at);
        let others = self.alive.next_death(Instant::now()).into_iter().chain(self.retry);
        told.into_iter().chain(others).min()
    }

    /// Whether the plan may be another one now.
    fn has_changed(&mut self) -> bool {
        let now = Instant::now();
        self.alive.look(now);
        // Asked at each message.
        let before = self.living.iter().filter(|name| **name != self.settings.name);
        self.alive.names(now).ne(before) || self.retry.is_some_and(|at| at <= now)
    }

    fn living_others(&self) -> BTreeSet<String> {
        let others = self.living.iter().filter(|name| **name != self.settings.name);
        others.cloned().collect()
    }

    /// Does what the plan says now.
    fn act(&mut self, facts: &Facts, links: &[Link]) {
        let mut living = self.alive.living(Instant::now());
        for name in living.symmetric_difference(&self.living_others()) {
            tracing::info!(
                node = name,
                alive = living.contains(name),
                "another node that answers for addresses"
            );
        }
        // Until its Node shows the key of this process, the others take it for dead and answer in its place.
        let own = facts
            .nodes
            .get(&self.settings.name)
            .and_then(|node| node.shown.as_ref());
        if own.is_some_and(|shown| shown.key == self.speaker.public()) {
            living.insert(self.settings.name.clone());
        }
        // One that was silent for a while may have been asked by somebody meanwhile, and answered.
        let returned = living.iter().any(|name| !self.living.contains(name));
        self.living = living;
        let wanted = plan::plan(facts, &self.settings.name, &self.living, links);
        let mut failed = Vec::new();
        for step in plan::difference(&self.plan, &wanted) {
            if let Err((link, error)) = self.step(step) {
                tracing::warn!(link, %error, "addresses of load balancers can't be answered for on a link");
                failed.push(link);
            }
        }
        self.plan = wanted;
        self.retry = (!failed.is_empty()).then(|| Instant::now() + RETRY);
        // What wasn't done isn't part of what is, and so is a difference the next time.
        for link in failed {
            self.plan.remove(&link);
            self.open.remove(&link);
        }
        if returned {
            self.due.clear();
            let all: Vec<(u32, IpAddr)> = self
                .plan
                .iter()
                .flat_map(|(link, (_, ips))| ips.iter().map(|ip| (*link, *ip)))
                .collect();
            all.into_iter().for_each(|(link, ip)| self.tell(link, ip));
        }
        self.tell_neighbours();
    }

    fn step(&mut self, step: Step) -> Result<(), (u32, std::io::Error)> {
        match step {
            Step::Open(link) => {
                let responder = Responder::open(&link).map_err(|e| (link.index, e))?;
                self.open.insert(link.index, responder);
            }
            Step::Close(link) => {
                self.open.remove(&link);
                self.due.retain(|(_, of, _)| *of != link);
            }
            Step::Answer(link, ip) => {
                if let Some(responder) = self.open.get_mut(&link) {
                    responder.answer(ip);
                    tracing::info!(%ip, link, "this node answers for an address");
                    self.tell(link, ip);
                }
            }
            Step::Silence(link, ip) => {
                if let Some(responder) = self.open.get_mut(&link) {
                    responder.silence(ip);
                    tracing::info!(%ip, link, "this node answers for an address no longer");
                }
                self.due.retain(|(_, of, about)| (*of, *about) != (link, ip));
            }
        }
        Ok(())
    }

    fn tell(&mut self, link: u32, ip: IpAddr) {
        let now = Instant::now();
        self.due.extend(TOLD.map(|after| (now + after, link, ip)));
    }

    /// Tells neighbours what is due.
    fn tell_neighbours(&mut self) {
        let now = Instant::now();
        while let Some((at, link, ip)) = self.due.first().copied().filter(|(at, ..)| *at <= now) {
            self.due.remove(&(at, link, ip));
            if let Some(responder) = self.open.get(&link)
                && let Err(error) = responder.announce(ip)
            {
                tracing::debug!(%ip, link, %error, "neighbours weren't told of an address");
            }
        }
    }
}
