//! Whether something has been cancelled, asked often and by the same task: only the first time it says that it waits.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

pub struct Ended {
    token: CancellationToken,
    wait: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Who is told of it.
    told: Option<Waker>,
}

impl Ended {
    pub fn of(token: CancellationToken) -> Ended {
        Ended {
            wait: Box::pin(token.clone().cancelled_owned()),
            token,
            told: None,
        }
    }

    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.told.as_ref().is_some_and(|told| told.will_wake(cx.waker())) {
            return match self.token.is_cancelled() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            };
        }
        let polled = self.wait.as_mut().poll(cx);
        self.told = polled.is_pending().then(|| cx.waker().clone());
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Counts(AtomicUsize);

    impl Wake for Counts {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn whoever_asked_last_is_told_however_often_he_asked() {
        let token = CancellationToken::new();
        let mut ended = Ended::of(token.clone());
        let [first, last] = [(); 2].map(|()| Arc::new(Counts::default()));
        for who in [&first, &first, &last, &last] {
            let waker = Waker::from(who.clone());
            assert!(ended.poll(&mut Context::from_waker(&waker)).is_pending());
        }
        token.cancel();
        assert_eq!(last.0.load(Ordering::SeqCst), 1);
        for who in [&last, &first, &first] {
            let waker = Waker::from(who.clone());
            assert!(ended.poll(&mut Context::from_waker(&waker)).is_ready());
        }
    }
}
