//! Gets and lists.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use keelson_cache::{At, Entry, Error, Form, ListQuery, Predicate, Selection};
use keelson_store::Store;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn a_consistent_read_sees_every_write_before_it() {
    let lab = lab();
    for n in 0..200 {
        let revision = lab.put("a/x", &n.to_string()).await;
        if n % 3 == 0 {
            lab.elsewhere().await;
        }
        let (entry, at) = lab.cache.get(b"/texts/a/x", At::Consistent).await.unwrap();
        let entry = entry.unwrap();
        assert_eq!(
            (&entry.value()[..], entry.revision()),
            (n.to_string().as_bytes(), revision)
        );
        assert!(at >= revision);
    }
    lab.delete("a/x").await;
    assert!(lab.cache.get(b"/texts/a/x", At::Consistent).await.unwrap().0.is_none());
}

#[tokio::test(start_paused = true)]
async fn lists_by_scope_selector_and_index() {
    let lab = lab();
    lab.put("b/1", "node=n1 app=web").await;
    lab.put("a/2", "node=n2 app=web").await;
    lab.put("a/1", "node=n1 app=db").await;
    lab.put("ab/1", "node= app=db").await;
    let all = lab.list(Selection::all(), At::Consistent).await;
    assert_eq!(all.len(), 4);
    assert!(all[0].starts_with("a/1") && all[3].starts_with("b/1"));
    let in_a = lab.list(namespace("a"), At::Consistent).await;
    assert_eq!(in_a, ["a/1=node=n1 app=db@4", "a/2=node=n2 app=web@3"]);
    let web = lab
        .list(Selection::all().with_predicate(app("web")), At::Consistent)
        .await;
    assert_eq!(web.len(), 2);
    let n1 = lab.list(on_node("n1"), At::Consistent).await;
    assert_eq!(n1, ["a/1=node=n1 app=db@4", "b/1=node=n1 app=web@2"]);
    lab.put("a/1", "node=n2 app=db").await;
    lab.delete("b/1").await;
    assert!(lab.list(on_node("n1"), At::Consistent).await.is_empty());
    assert_eq!(lab.list(on_node("n2"), At::Consistent).await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn pages_are_of_one_revision() {
    let lab = lab();
    for n in 0..7 {
        lab.put(&format!("a/{n}"), "old").await;
    }
    let mut query = ListQuery {
        selection: namespace("a"),
        at: At::Consistent,
        limit: 3,
        after: None,
    };
    let first = lab.cache.list(query.clone()).await.unwrap();
    assert_eq!((first.entries.len(), first.remaining, first.revision), (3, Some(4), 8));
    lab.delete("a/3").await;
    lab.put("a/4", "new").await;
    lab.put("a/45", "new").await;
    query.at = At::Exact(first.revision);
    query.after = first.next;
    let second = lab.cache.list(query.clone()).await.unwrap();
    let names: Vec<_> = second.entries.iter().map(|e| shown(e)).collect();
    assert_eq!(names, ["a/3=old@5", "a/4=old@6", "a/5=old@7"]);
    query.after = second.next;
    let third = lab.cache.list(query.clone()).await.unwrap();
    assert_eq!((third.entries.len(), third.next, third.remaining), (1, None, None));

    let current = lab.store.current_revision().await.unwrap();
    lab.store.compact(current).await.unwrap();
    let expired = lab.cache.list(query).await.unwrap_err();
    assert!(expired.is_expired(), "{expired}");
}

/// Further back than the ring goes, the store is asked.
#[tokio::test(start_paused = true)]
async fn the_far_past_comes_from_the_store() {
    let lab = lab();
    for n in 0..4 {
        lab.put(&format!("a/{n}"), "app=old").await;
    }
    let then = lab.put("a/4", "app=new").await;
    lab.elsewhere().await;
    // This cache knows only what is now.
    lab.delete("a/1").await;
    lab.put("a/2", "changed").await;
    let selection = namespace("a").with_predicate(app("old"));
    let mut query = ListQuery {
        selection,
        at: At::Exact(then),
        limit: 3,
        after: None,
    };
    let page = lab.cache.list(query.clone()).await.unwrap();
    assert_eq!(
        page.entries.iter().map(|e| e.name().to_owned()).collect::<Vec<_>>(),
        ["0", "1", "2"]
    );
    assert!(page.next.is_some());
    query.after = page.next;
    let page = lab.cache.list(query).await.unwrap();
    assert_eq!(page.entries.len(), 1);
    assert_eq!((page.next, page.revision), (None, then));
}

#[tokio::test(start_paused = true)]
async fn a_revision_that_never_comes_is_too_large() {
    let lab = lab();
    lab.put("a/1", "1").await;
    let query = ListQuery {
        selection: Selection::all(),
        at: At::NotOlderThan(99),
        limit: 0,
        after: None,
    };
    let error = lab.cache.list(query).await.unwrap_err();
    assert_eq!(error, Error::TooLarge { asked: 99, current: 2 });
    assert_eq!(error.to_string(), "Too large resource version: 99, current: 2");
}

#[tokio::test(start_paused = true)]
async fn an_object_is_encoded_once() {
    let lab = lab();
    lab.put("a/1", "text").await;
    for _ in 0..5 {
        let entry = lab.cache.get(b"/texts/a/1", At::Any).await.unwrap().0.unwrap();
        assert_eq!(lab.cache.encoded(&entry, Form(1)).unwrap(), "text@2 as 1");
        assert_eq!(lab.cache.encoded(&entry, Form(2)).unwrap(), "text@2 as 2");
    }
    assert_eq!(lab.codec.encoded.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_object_hides_no_other() {
    let lab = lab();
    let revision = lab
        .store
        .put("/texts/a/1".into(), vec![0xff].into(), keelson_store::Expect::Any, None)
        .await;
    assert!(revision.unwrap().done().is_some());
    lab.put("a/2", "fine").await;
    let query = ListQuery {
        selection: Selection::all(),
        at: At::Consistent,
        limit: 0,
        after: None,
    };
    let page = lab.cache.list(query).await.unwrap();
    assert_eq!(page.entries.len(), 2);
    assert!(page.entries[0].unreadable().is_some() && lab.cache.encoded(&page.entries[0], Form(1)).is_err());
    assert!(lab.cache.encoded(&page.entries[1], Form(1)).is_ok());
}

/// A label that is asked for again has an index, which every change is in, until nobody asks any more.
#[tokio::test(start_paused = true)]
async fn what_is_selected_by_a_label_again_and_again_is_found_by_it() {
    let lab = lab();
    let app_of = |n: usize| format!("app={} {n}", ["web", "db", "mail"][n % 3]);
    for n in 0..600 {
        lab.put(&format!("a/{n}"), &app_of(n)).await;
    }
    let looked_at = Arc::new(AtomicUsize::new(0));
    let select = |app: &'static str| {
        let looked_at = looked_at.clone();
        let predicate: Predicate = Arc::new(move |entry: &Entry| {
            looked_at.fetch_add(1, Ordering::Relaxed);
            entry.attributes().label("app") == Some(app)
        });
        Selection::all().with_predicate(predicate)
    };
    for round in 0..200 {
        for app in ["web", "db", "none"] {
            let by_all = lab.list(select(app), At::Consistent).await;
            looked_at.store(0, Ordering::Relaxed);
            let by_label = lab.list(select(app).with_label("app", app), At::Consistent).await;
            assert_eq!(by_label, by_all, "{round}");
            // The second list that asks has it made, beside the lists.
            let most = if round < 3 { 601 } else { by_all.len() };
            assert!(looked_at.load(Ordering::Relaxed) <= most, "{round}: {looked_at:?}");
        }
        let n = round * 7 % 600;
        match round % 4 {
            0 => lab.delete(&format!("a/{n}")).await,
            1 => lab.put(&format!("b/{n}"), &app_of(n)).await,
            2 => lab.put(&format!("a/{n}"), "no label").await,
            _ => lab.put(&format!("a/{n}"), &app_of(n + 1)).await,
        };
    }
    let then = lab.cache.revision();
    lab.put("b/new", "app=web").await;
    let before = lab.list(select("web").with_label("app", "web"), At::Exact(then)).await;
    assert!(before.iter().all(|shown| !shown.starts_with("b/new")));
    tokio::time::sleep(Duration::from_secs(90)).await;
    looked_at.store(0, Ordering::Relaxed);
    lab.list(select("web").with_label("app", "web"), At::Consistent).await;
    assert!(looked_at.load(Ordering::Relaxed) >= 500, "its index is there still");
}
