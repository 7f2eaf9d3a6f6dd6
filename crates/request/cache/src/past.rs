//! Lists of a revision that the ring doesn't reach: read from the store, page by page, past the cache.

use crate::cache::{Inner, ListPage, ListQuery};
use crate::feed::entries;
use crate::snapshot::scope_range;
use crate::{Error, Result};
use keelson_store::{Error as StoreError, ListRequest, Revision};

/// At least so many keys are read at once; a selector may drop most.
const PORTION: usize = 500;

pub(crate) async fn list(inner: &Inner, query: &ListQuery, revision: Revision) -> Result<ListPage> {
    let mut range = scope_range(inner.prefix(), &query.selection.scope);
    if let Some(after) = &query.after {
        range = range.after(after);
    }
    let mut page = ListPage {
        entries: Vec::new(),
        revision,
        next: None,
        remaining: None,
    };
    loop {
        let portion = if query.limit == 0 {
            PORTION
        } else {
            query.limit.max(PORTION)
        };
        let mut request = ListRequest::new(range.clone()).limit(portion).at(revision);
        request.uncounted = query.selection.predicate.is_some();
        let listed = inner.store().list(request).await.map_err(|e| expired(e, revision))?;
        let mut left = listed.count;
        for entry in entries(inner, listed.kvs).await? {
            range = range.after(entry.key());
            if query.limit != 0 && page.entries.len() == query.limit {
                page.next = page.entries.last().map(|e| e.key().clone());
                page.remaining = query.selection.predicate.is_none().then_some(left);
                return Ok(page);
            }
            left = left.saturating_sub(1);
            if query.selection.matches(&entry) {
                page.entries.push(entry);
            }
        }
        if !listed.more {
            return Ok(page);
        }
        if query.limit != 0 && page.entries.len() == query.limit {
            page.next = page.entries.last().map(|e| e.key().clone());
            page.remaining = query.selection.predicate.is_none().then_some(left);
            return Ok(page);
        }
    }
}

pub(crate) fn expired(error: StoreError, asked: Revision) -> Error {
    match error {
        StoreError::Compacted { compact_revision } => Error::Compacted {
            asked,
            oldest: compact_revision,
        },
        StoreError::FutureRevision { asked, current } => Error::TooLarge { asked, current },
        error => Error::Store(error),
    }
}
