//! The seats of a priority level and the queues before them.
//!
//! A flow is dealt a hand of queues and joins the shortest; queues are served in turn, so that a flood of one flow
//! leaves room for the others.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::oneshot;

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

#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    Full,
}

#[derive(Default)]
struct State {
    seats: usize,
    in_use: usize,
    waiting: usize,
    queues: Vec<VecDeque<oneshot::Sender<Permit>>>,
    hand: usize,
    length: usize,
    /// The queue to be served next.
    next: usize,
}

#[derive(Default)]
pub struct Gate(Mutex<State>);

/// A seat; given back when dropped.
pub struct Permit(Arc<Gate>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl Gate {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }
    pub fn in_use(&self) -> usize {
        self.0.lock().in_use
    }
    pub fn waiting(&self) -> usize {
        self.0.lock().waiting
    }

    /// Takes on a new configuration. Who waits in a queue that goes moves to another.
    pub fn resize(self: &Arc<Self>, seats: usize, shape: Shape) {
        let mut state = self.0.lock();
        state.seats = seats.max(1);
        state.hand = shape.hand;
        state.length = shape.length;
        let mut homeless = VecDeque::new();
        while state.queues.len() > shape.queues.max(1) {
            homeless.extend(state.queues.pop().into_iter().flatten());
        }
        state.queues.resize_with(shape.queues, VecDeque::new);
        if let Some(first) = state.queues.first_mut() {
            first.append(&mut homeless);
        } else {
            // No queues any more: waiters are refused by the drop of their senders.
            state.waiting = 0;
        }
        state.next = 0;
        drop(state);
        self.dispatch();
    }

    pub async fn enter(self: &Arc<Self>, flow: u64) -> Result<Permit, Refusal> {
        let receiver = {
            let mut state = self.0.lock();
            if state.in_use < state.seats && state.waiting == 0 {
                state.in_use += 1;
                return Ok(Permit(self.clone()));
            }
            let chosen = state.shortest_of_hand(flow).ok_or(Refusal::Full)?;
            let (sender, receiver) = oneshot::channel();
            state.queues[chosen].retain(|s| !s.is_closed());
            state.waiting = state.queues.iter().map(VecDeque::len).sum();
            if state.queues[chosen].len() >= state.length {
                return Err(Refusal::Full);
            }
            state.queues[chosen].push_back(sender);
            state.waiting += 1;
            receiver
        };
        self.dispatch();
        receiver.await.map_err(|_| Refusal::Full)
    }

    fn release(self: &Arc<Self>) {
        {
            let mut state = self.0.lock();
            state.in_use = state.in_use.saturating_sub(1);
        }
        self.dispatch();
    }

    /// Gives free seats to who waits. A permit whose waiter has gone comes back by its drop.
    fn dispatch(self: &Arc<Self>) {
        loop {
            let sender = {
                let mut state = self.0.lock();
                if state.in_use >= state.seats {
                    return;
                }
                let Some(sender) = state.pop() else { return };
                if sender.is_closed() {
                    continue;
                }
                state.in_use += 1;
                sender
            };
            // The lock is free here: a returned permit drops, and its drop takes the lock.
            drop(sender.send(Permit(self.clone())));
        }
    }
}

impl State {
    fn shortest_of_hand(&self, flow: u64) -> Option<usize> {
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
            .min_by_key(|q| self.queues[*q].len())
    }
    fn pop(&mut self) -> Option<oneshot::Sender<Permit>> {
        let n = self.queues.len();
        for i in 0..n {
            let queue = (self.next + i) % n;
            if let Some(sender) = self.queues[queue].pop_front() {
                self.next = (queue + 1) % n;
                self.waiting = self.waiting.saturating_sub(1);
                return Some(sender);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn seats_are_bounded_waiters_served_and_the_rest_refused() {
        let gate = Gate::new();
        gate.resize(
            1,
            Shape {
                queues: 2,
                hand: 1,
                length: 1,
            },
        );
        let first = gate.enter(0).await.unwrap();
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter(0).await.is_ok() }
        });
        while gate.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(gate.enter(0).await.err(), Some(Refusal::Full));
        drop(first);
        assert!(waiting.await.unwrap());
        assert_eq!((gate.in_use(), gate.waiting()), (0, 0));
    }

    #[tokio::test]
    async fn a_waiter_that_leaves_costs_no_seat() {
        let gate = Gate::new();
        gate.resize(
            1,
            Shape {
                queues: 1,
                hand: 1,
                length: 5,
            },
        );
        let first = gate.enter(0).await.unwrap();
        let left = tokio::time::timeout(std::time::Duration::from_millis(5), gate.enter(0)).await;
        assert!(left.is_err());
        drop(first);
        assert_eq!(gate.in_use(), 0);
        assert!(gate.enter(0).await.is_ok());
    }

    #[tokio::test]
    async fn without_queues_what_finds_no_seat_is_refused() {
        let gate = Gate::new();
        gate.resize(1, Shape::REJECT);
        let _first = gate.enter(0).await.unwrap();
        assert_eq!(gate.enter(1).await.err(), Some(Refusal::Full));
    }
}
