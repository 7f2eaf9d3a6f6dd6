//! Where connections' tasks run: with all others, or behind them.
//!
//! Who comes behind ([`share`](crate::share)) is served by threads of a lower priority, so that the kernel gives them what the others leave. A task
//! changes its lane between two of its steps, as its client's share says. The threads are there from the first time on that somebody comes behind.

use crate::peers::peer_of;
use crate::share::{Asker, Shares};
use keelson_sys::thread::{had, set_nice};
use std::cell::{Cell, OnceCell};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::Instant;

/// A tenth of what the others get, while they have something to do: enough to get on with what is locked.
const NICE: i32 = 10;
const STACK_BYTES: usize = 2 << 20;
const MOST_BLOCKING: usize = 16;

thread_local! {
    /// Of a thread that comes behind: where the others run.
    static FIRST: OnceCell<Handle> = const { OnceCell::new() };
    static CLOCK: Clock = const { Clock { asked: Cell::new(Duration::ZERO), counted: Cell::new(Duration::ZERO) } };
    /// The work that the calling thread does has no task yet.
    static AT_ONCE: Cell<bool> = const { Cell::new(false) };
}

/// What follows is done by the request's own task, beside its connection's.
pub async fn own_task() {
    // What has no task isn't waited for by anybody: it is asked again as soon as it has one.
    std::future::poll_fn(|_| match AT_ONCE.get() {
        true => Poll::Pending,
        false => Poll::Ready(()),
    })
    .await;
}

/// Whether work is done that needs no task. Whatever it waits for, its task asks again.
fn done_at_once<F: Future<Output = ()>>(work: Pin<&mut F>) -> bool {
    AT_ONCE.set(true);
    // A panic ends the request alone, as it would its task.
    let step = catch_unwind(AssertUnwindSafe(|| work.poll(&mut Context::from_waker(Waker::noop()))));
    AT_ONCE.set(false);
    step.map_or(true, |polled| polled.is_ready())
}

/// Where work runs that is not for one client alone, though one may have begun it: a connection that is kept, an answer that several wait for.
pub fn for_all() -> Handle {
    FIRST.with(|first| first.get().cloned()).unwrap_or_else(Handle::current)
}

/// Whether the calling thread serves those that come behind.
pub(crate) fn comes_behind() -> bool {
    FIRST.with(|first| first.get().is_some())
}

pub(crate) struct Lanes {
    first: Handle,
    /// `None`: it couldn't be begun; then nobody comes behind.
    behind: OnceLock<Option<Runtime>>,
}

impl Lanes {
    pub fn new() -> Arc<Lanes> {
        Arc::new(Lanes {
            first: Handle::current(),
            behind: OnceLock::new(),
        })
    }

    fn behind(&self) -> &Handle {
        let runtime = self.behind.get_or_init(|| {
            let first = self.first.clone();
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            let begun = Builder::new_multi_thread()
                .worker_threads(threads.clamp(1, 4))
                .max_blocking_threads(MOST_BLOCKING)
                .thread_stack_size(STACK_BYTES)
                .thread_name("behind")
                .on_thread_start(move || {
                    FIRST.with(|known| drop(known.set(first.clone())));
                    if let Err(error) = set_nice(NICE) {
                        tracing::debug!(%error, "a thread keeps its priority");
                    }
                })
                .enable_all()
                .build();
            begun
                .inspect_err(|error| tracing::warn!(%error, "greedy clients come before nobody, and behind nobody"))
                .ok()
        });
        runtime.as_ref().map_or(&self.first, Runtime::handle)
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        // What still runs there are connections that have been upgraded: the listener has ended.
        if let Some(runtime) = self.behind.take().flatten() {
            runtime.shutdown_background();
        }
    }
}

/// What spawns a connection's tasks.
#[derive(Clone, Default)]
pub(crate) struct Spawner(Option<(Arc<Lanes>, Asker)>);

impl Spawner {
    pub fn of(lanes: &Arc<Lanes>, shares: &Arc<Shares>, remote: IpAddr) -> Spawner {
        Spawner(Some((lanes.clone(), Asker::at(shares, peer_of(remote)))))
    }
    /// `None`: nobody counts.
    pub fn asker(&self) -> Option<&Asker> {
        self.0.as_ref().map(|(_, asker)| asker)
    }

    pub fn spawn<F>(&self, task: Pin<Box<F>>)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        match &self.0 {
            Some((lanes, asker)) => go_on(lanes.clone(), asker.clone(), task),
            None => drop(tokio::spawn(task)),
        }
    }
}

fn go_on<F>(lanes: Arc<Lanes>, asker: Asker, task: Pin<Box<F>>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let behind = asker.is_behind();
    let handle = if behind {
        lanes.behind().clone()
    } else {
        lanes.first.clone()
    };
    handle.spawn(async move {
        let task = Some(task);
        let stay = Stay {
            task,
            asker: &asker,
            behind,
        };
        if let Some(task) = stay.await {
            go_on(lanes, asker, task);
        }
    });
}

impl<F> hyper::rt::Executor<F> for Spawner
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, work: F) {
        let mut work = Box::pin(work);
        if !done_at_once(work.as_mut()) {
            self.spawn(work);
        }
    }
}

/// A task for as long as its client's lane stays the same; then the task, unless it has ended.
struct Stay<'a, F> {
    task: Option<Pin<Box<F>>>,
    asker: &'a Asker,
    behind: bool,
}

impl<F: Future<Output = ()>> Future for Stay<'_, F> {
    type Output = Option<Pin<Box<F>>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.asker.is_behind() != self.behind {
            return Poll::Ready(self.task.take());
        }
        let asker = self.asker;
        let Some(task) = &mut self.task else {
            return Poll::Ready(None);
        };
        counted(asker, || task.as_mut().poll(cx)).map(|()| None)
    }
}

/// A step's time of the processor is put to its client's account.
fn counted<T>(asker: &Asker, step: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = step();
    let now = Instant::now();
    asker.spend(CLOCK.with(|clock| clock.had(now - began)), now);
    done
}

/// What a step has had that took so long by the clock on the wall. The kernel is only asked where it may have been without the processor meanwhile.
struct Clock {
    /// What the thread had when that was last asked.
    asked: Cell<Duration>,
    /// What has been counted since.
    counted: Cell<Duration>,
}

const SURE: Duration = Duration::from_micros(100);

impl Clock {
    fn had(&self, took: Duration) -> Duration {
        if took <= SURE {
            self.counted.set(self.counted.get() + took);
            return took;
        }
        let all = had();
        let since = all.saturating_sub(self.asked.replace(all));
        since.saturating_sub(self.counted.take()).min(took)
    }
}

/// A client's work that goes on without its connection: counted for him, where it has begun.
pub struct Counted<F> {
    asker: Option<Asker>,
    work: Pin<Box<F>>,
}

impl<F: Future> Counted<F> {
    /// Without an asker it is nobody's.
    pub fn new(asker: Option<Asker>, work: F) -> Counted<F> {
        let work = Box::pin(work);
        Counted { asker, work }
    }
}

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Counted { asker, work } = &mut *self;
        match asker {
            Some(asker) => counted(asker, || work.as_mut().poll(cx)),
            None => work.as_mut().poll(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::rt::Executor;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn what_is_done_at_once_needs_no_task_and_what_waits_or_asks_for_one_has_it() {
        let here = tokio::task::try_id();
        let spawner = Spawner::default();
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let tells = |name: &'static str| {
            let tell = tell.clone();
            move || tell.send((name, tokio::task::try_id())).unwrap()
        };
        let at_once = tells("at once");
        spawner.execute(async move { at_once() });
        assert_eq!(told.try_recv().unwrap(), ("at once", here));
        spawner.execute(async { panic!("of one request") });
        let own = tells("own");
        spawner.execute(async move {
            own_task().await;
            own();
        });
        let (go, gone) = oneshot::channel();
        let waits = tells("waits");
        spawner.execute(async move {
            gone.await.unwrap();
            waits();
        });
        assert!(told.try_recv().is_err());
        go.send(()).unwrap();
        for name in ["own", "waits"] {
            let (told, task) = told.recv().await.unwrap();
            assert!(told == name && task != here);
        }
    }
}
