//! The seats of a priority level and the queues before them.
//!
//! A flow is dealt a hand of queues and joins the least loaded. Queues are served by the work they have had: what a request
//! took, seats times seconds, is put to its queue's account when it ends, and the queue with the least on it comes next. So
//! a flood of one flow, or few but wide or slow requests of it, leaves room for the others.
//!
//! A flow gets more seats only while enough stay free for who comes next ([`PART`]): seats that are held for long, by lists on their way or by who
//! reads slowly, are never all of one client's. It waits then as if there were none, and others go past it.
//!
//! A request may be wider than one seat. When it is its turn it waits for as many, and nobody goes past it.

use super::demand::Demand;
use crate::metrics::InFlight;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// What a request is taken to cost before it is known (upstream's 3 ms), so that those that wait don't all look free.
const GUESS: f64 = 0.003;

/// A flow that has seats has at most so many times what stays free: one alone three quarters of a level, two three sevenths each. What is kept
/// free shrinks with the flows, and is never nothing for a new one.
const PART: usize = 3;

/// The queues of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub queues: usize,
    pub hand: usize,
    pub length: usize,
}

impl Shape {
    /// No queue: what finds no seat is refused.
    pub const REJECT: Shape = Shape {
        queues: 0,
        hand: 0,
        length: 0,
    };
}

/// What a request takes of a level: so many seats, and for `linger` after its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Width {
    pub seats: usize,
    pub linger: Duration,
}

impl Width {
    pub const ONE: Width = Width {
        seats: 1,
        linger: Duration::ZERO,
    };
}

#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    Full,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiter>,
    /// Seats that its requests have or wait for.
    load: usize,
    /// Seat-seconds it has had, as far as they count.
    account: f64,
}

struct Waiter {
    sender: oneshot::Sender<Permit>,
    flow: u64,
    width: Width,
}

#[derive(Default)]
struct State {
    seats: usize,
    in_use: usize,
    waiting: usize,
    waiting_seats: usize,
    queues: Vec<Queue>,
    /// Seats of each flow that has some.
    flows: HashMap<u64, usize>,
    hand: usize,
    length: usize,
    /// The account of the queue that was served last: one that comes new begins there, not with what it never asked for.
    served: f64,
    /// Changes with the queues: accounts of earlier ones are nobody's.
    generation: u64,
    demand: Demand,
}

#[derive(Default)]
pub struct Gate(Mutex<State>);

/// Seats; given back when dropped.
pub struct Permit {
    gate: Arc<Gate>,
    width: Width,
    since: Instant,
    held: Held,
    told: Option<InFlight>,
}

/// On whose account seats are.
#[derive(Clone, Copy, Default)]
struct Held {
    flow: Option<u64>,
    /// With the generation of queues.
    queue: Option<(usize, u64)>,
}

impl Permit {
    /// Who has the seats is counted while they are held.
    pub fn telling(mut self, told: Option<InFlight>) -> Permit {
        self.told = told;
        self
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let (gate, seats, linger) = (self.gate.clone(), self.width.seats, self.width.linger);
        let (held, took) = (self.held, self.since.elapsed() + linger);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if !linger.is_zero() => drop(runtime.spawn(async move {
                tokio::time::sleep(linger).await;
                gate.release(seats, held, took);
            })),
            _ => gate.release(seats, held, took),
        }
    }
}

impl Gate {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }
    pub fn in_use(&self) -> usize {
        self.0.lock().in_use
    }
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.0.lock().waiting
    }
    pub fn seats(&self) -> usize {
        self.0.lock().seats
    }
    /// What was asked for since the last time.
    pub fn demand(&self) -> super::demand::Seen {
        let mut state = self.0.lock();
        state.note();
        state.demand.take()
    }

    /// Takes on how many seats there are now.
    pub fn resize(self: &Arc<Self>, seats: usize) {
        self.0.lock().seats = seats;
        self.dispatch();
    }

    /// Takes on other queues. Who waits in one that goes moves to another.
    pub fn reshape(self: &Arc<Self>, shape: Shape) {
        let mut state = self.0.lock();
        state.hand = shape.hand;
        state.length = shape.length;
        if state.queues.len() != shape.queues {
            let homeless: Vec<Waiter> = state.queues.drain(..).flat_map(|q| q.waiting).collect();
            state.queues.resize_with(shape.queues, Queue::default);
            state.generation += 1;
            (state.waiting, state.waiting_seats, state.served) = (0, 0, 0.0);
            // Without queues waiters are refused, by the drop of their senders.
            if !state.queues.is_empty() {
                for (i, waiter) in homeless.into_iter().enumerate() {
                    let queue = i % shape.queues;
                    state.push(queue, waiter);
                }
            }
            state.note();
        }
        drop(state);
        self.dispatch();
    }

    /// Seats that aren't asked for: of an exempt level.
    pub fn pass(self: &Arc<Self>, width: Width) -> Permit {
        let mut state = self.0.lock();
        state.in_use += width.seats;
        state.note();
        self.permit(width, Held::default())
    }

    pub async fn enter(self: &Arc<Self>, flow: u64, width: Width) -> Result<Permit, Refusal> {
        let receiver = {
            let mut state = self.0.lock();
            let chosen = state.least_of_hand(flow);
            if state.waiting == 0 && state.fits(width) && state.may_have(flow, width) {
                let held = state.take(width, flow, chosen);
                return Ok(self.permit(width, held));
            }
            let chosen = chosen.ok_or(Refusal::Full)?;
            state.forget_the_gone(chosen);
            if state.queues[chosen].waiting.len() >= state.length {
                return Err(Refusal::Full);
            }
            let (sender, receiver) = oneshot::channel();
            state.push(chosen, Waiter { sender, flow, width });
            state.note();
            receiver
        };
        self.dispatch();
        receiver.await.map_err(|_| Refusal::Full)
    }

    fn permit(self: &Arc<Self>, width: Width, held: Held) -> Permit {
        Permit {
            gate: self.clone(),
            width,
            since: Instant::now(),
            held,
            told: None,
        }
    }

    fn release(self: &Arc<Self>, seats: usize, held: Held, took: Duration) {
        {
            let mut state = self.0.lock();
            state.in_use = state.in_use.saturating_sub(seats);
            if let Some(flow) = held.flow {
                state.give_back(flow, seats);
            }
            if let Some((queue, generation)) = held.queue
                && generation == state.generation
            {
                let queue = &mut state.queues[queue];
                queue.load = queue.load.saturating_sub(seats);
                queue.account += seats as f64 * (took.as_secs_f64() - GUESS);
            }
            state.note();
        }
        self.dispatch();
    }

    /// Gives free seats to who waits. A permit whose waiter has gone comes back by its drop.
    fn dispatch(self: &Arc<Self>) {
        loop {
            let (sender, permit) = {
                let mut state = self.0.lock();
                let Some(queue) = state.next() else { return };
                let width = state.queues[queue].waiting.front().map_or(Width::ONE, |w| w.width);
                if !state.fits(width) {
                    return;
                }
                let Some(waiter) = state.pop(queue) else { return };
                let held = state.take(width, waiter.flow, Some(queue));
                (waiter.sender, self.permit(width, held))
            };
            // The lock is free here: a returned permit drops, and its drop takes the lock.
            drop(sender.send(permit));
        }
    }
}

impl State {
    /// Who is wider than the level gets all of it.
    fn fits(&self, width: Width) -> bool {
        self.in_use + width.seats <= self.seats || (self.in_use == 0 && self.seats > 0)
    }
    /// Whether a flow may have more seats, if there are as many.
    fn may_have(&self, flow: u64, width: Width) -> bool {
        let Some(has) = self.flows.get(&flow) else { return true };
        let left = self.seats.saturating_sub(self.in_use + width.seats);
        has + width.seats <= PART * left
    }
    fn give_back(&mut self, flow: u64, seats: usize) {
        if let Some(has) = self.flows.get_mut(&flow) {
            *has = has.saturating_sub(seats);
            if *has == 0 {
                self.flows.remove(&flow);
            }
        }
    }
    fn take(&mut self, width: Width, flow: u64, queue: Option<usize>) -> Held {
        self.in_use += width.seats;
        // Without queues there is one flow, and nobody to wait for another.
        let flow = queue.map(|_| flow);
        if let Some(flow) = flow {
            *self.flows.entry(flow).or_default() += width.seats;
        }
        if let Some(queue) = queue {
            let served = self.served;
            let queue = &mut self.queues[queue];
            if queue.load == 0 {
                queue.account = queue.account.max(served);
            }
            queue.load += width.seats;
            queue.account += width.seats as f64 * GUESS;
        }
        self.note();
        let queue = queue.map(|queue| (queue, self.generation));
        Held { flow, queue }
    }
    fn push(&mut self, queue: usize, waiter: Waiter) {
        self.waiting += 1;
        self.waiting_seats += waiter.width.seats;
        let served = self.served;
        let queue = &mut self.queues[queue];
        if queue.load == 0 {
            queue.account = queue.account.max(served);
        }
        queue.load += waiter.width.seats;
        queue.waiting.push_back(waiter);
    }
    fn pop(&mut self, queue: usize) -> Option<Waiter> {
        let waiter = self.queues[queue].waiting.pop_front()?;
        self.gone(queue, waiter.width.seats);
        Some(waiter)
    }
    fn gone(&mut self, queue: usize, seats: usize) {
        self.waiting = self.waiting.saturating_sub(1);
        self.waiting_seats = self.waiting_seats.saturating_sub(seats);
        let load = &mut self.queues[queue].load;
        *load = load.saturating_sub(seats);
    }
    fn forget_the_gone(&mut self, queue: usize) {
        let mut waiting = std::mem::take(&mut self.queues[queue].waiting);
        waiting.retain(|w| {
            let gone = w.sender.is_closed();
            if gone {
                self.gone(queue, w.width.seats);
            }
            !gone
        });
        self.queues[queue].waiting = waiting;
    }
    fn note(&mut self) {
        self.demand.set(self.in_use + self.waiting_seats, Instant::now());
    }

    fn least_of_hand(&self, flow: u64) -> Option<usize> {
        let n = self.queues.len() as u64;
        if n == 0 {
            return None;
        }
        let mut hash = flow;
        (0..self.hand.max(1))
            .map(|_| {
                let queue = (hash % n) as usize;
                // Steele's mixing step: cards of a hand must not depend on each other.
                hash = (hash ^ (hash >> 31)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                queue
            })
            .min_by_key(|q| self.queues[*q].load)
    }

    /// The queue to be served next.
    fn next(&mut self) -> Option<usize> {
        if self.waiting == 0 {
            return None;
        }
        for queue in 0..self.queues.len() {
            while self.queues[queue].waiting.front().is_some_and(|w| w.sender.is_closed()) {
                self.pop(queue);
            }
        }
        let least = (0..self.queues.len())
            .filter(|q| {
                self.queues[*q]
                    .waiting
                    .front()
                    .is_some_and(|w| self.may_have(w.flow, w.width))
            })
            .min_by(|a, b| self.queues[*a].account.total_cmp(&self.queues[*b].account))?;
        self.served = self.served.max(self.queues[least].account);
        Some(least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: Width = Width {
        seats: 3,
        linger: Duration::ZERO,
    };

    fn gate(seats: usize, queues: usize, hand: usize, length: usize) -> Arc<Gate> {
        let gate = Gate::new();
        gate.reshape(Shape { queues, hand, length });
        gate.resize(seats);
        gate
    }

    #[tokio::test]
    async fn seats_are_bounded_waiters_served_and_the_rest_refused() {
        let gate = gate(1, 2, 1, 1);
        let first = gate.enter(0, Width::ONE).await.unwrap();
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter(0, Width::ONE).await.is_ok() }
        });
        while gate.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(gate.enter(0, Width::ONE).await.err(), Some(Refusal::Full));
        drop(first);
        assert!(waiting.await.unwrap());
        assert_eq!((gate.in_use(), gate.waiting()), (0, 0));
    }

    #[tokio::test]
    async fn a_waiter_that_leaves_costs_no_seat() {
        let gate = gate(1, 1, 1, 5);
        let first = gate.enter(0, Width::ONE).await.unwrap();
        let left = tokio::time::timeout(Duration::from_millis(5), gate.enter(0, Width::ONE)).await;
        assert!(left.is_err());
        drop(first);
        assert_eq!(gate.in_use(), 0);
        assert!(gate.enter(0, Width::ONE).await.is_ok());
    }

    #[tokio::test]
    async fn without_queues_what_finds_no_seat_is_refused() {
        let gate = gate(1, 0, 0, 0);
        let _first = gate.enter(0, Width::ONE).await.unwrap();
        assert_eq!(gate.enter(1, Width::ONE).await.err(), Some(Refusal::Full));
    }

    #[tokio::test]
    async fn a_wide_request_waits_for_all_its_seats_and_nobody_passes_it() {
        let gate = gate(3, 4, 1, 5);
        let small = gate.enter(0, Width::ONE).await.unwrap();
        let entering = |flow, width| {
            let gate = gate.clone();
            tokio::spawn(async move { gate.enter(flow, width).await.unwrap() })
        };
        let wide = entering(1, THREE);
        while gate.waiting() < 1 {
            tokio::task::yield_now().await;
        }
        let after = entering(2, Width::ONE);
        while gate.waiting() < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(gate.in_use(), 1);
        drop(small);
        let wide = wide.await.unwrap();
        assert_eq!((gate.in_use(), gate.waiting()), (3, 1));
        drop(wide);
        drop(after.await.unwrap());
        // One that is wider than all seats gets all of them.
        gate.resize(2);
        drop(gate.enter(0, THREE).await.unwrap());
    }

    #[tokio::test]
    async fn no_flow_has_all_seats_and_others_go_past_it() {
        let gate = gate(40, 64, 6, 50);
        let entering = |flow: u64, width| {
            let gate = gate.clone();
            tokio::spawn(async move { gate.enter(flow, width).await.unwrap() })
        };
        // Two flows that keep what they get: one has three quarters, the next three quarters of what is left, and so on.
        let mut held = Vec::new();
        for (flow, total) in [(1, 30), (2, 37)] {
            for _ in 0..40 {
                held.push(entering(flow, Width::ONE));
            }
            while gate.in_use() < total {
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
            assert_eq!(gate.in_use(), total);
        }
        for flow in 3..6 {
            drop(gate.enter(flow, Width::ONE).await.unwrap());
        }
        // The others' waiting ones come in turn as they give back.
        for entered in held {
            drop(entered.await.unwrap());
        }
        assert_eq!((gate.in_use(), gate.waiting(), gate.0.lock().flows.len()), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn seats_linger_and_slow_flows_wait_for_fast_ones() {
        let gate = gate(1, 2, 1, 50);
        let linger = Width {
            seats: 1,
            linger: Duration::from_secs(1),
        };
        drop(gate.enter(0, linger).await.unwrap());
        assert_eq!(gate.in_use(), 1);
        let began = Instant::now();
        drop(gate.enter(0, Width::ONE).await.unwrap());
        assert_eq!(began.elapsed(), Duration::from_secs(1));
        // Flow 0 keeps its seat for a second each time, flow 1 for a hundredth: the fast one doesn't wait for ten slow ones.
        let held = gate.enter(0, Width::ONE).await.unwrap();
        let run = |flow: u64, time: Duration| {
            let gate = gate.clone();
            tokio::spawn(async move {
                let permit = gate.enter(flow, Width::ONE).await.unwrap();
                tokio::time::sleep(time).await;
                drop(permit);
                Instant::now()
            })
        };
        let slow: Vec<_> = (0..10).map(|_| run(0, Duration::from_secs(1))).collect();
        let fast: Vec<_> = (0..10).map(|_| run(1, Duration::from_millis(10))).collect();
        while gate.waiting() < 20 {
            tokio::task::yield_now().await;
        }
        let began = Instant::now();
        drop(held);
        for task in fast {
            let took = task.await.unwrap() - began;
            assert!(took < Duration::from_millis(2200), "{took:?}");
        }
        for task in slow {
            task.await.unwrap();
        }
    }
}
