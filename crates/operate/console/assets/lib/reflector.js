// A collection as it is: listed by pages, then watched. What is shown stays while it is listed again.
//
// As tables (`table: true`) an item is {key, meta, cells}, and `columns` says what cells are; else it is the object itself.

import { Problem, link, pages, withQuery, TABLE_TYPE, JSON_TYPE } from './api.js';
import { lines, open } from './stream.js';

const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 30_000;
const WATCH_SECONDS = 280;

export class Reflector extends EventTarget {
  constructor(path, { table = true, query = {} } = {}) {
    super();
    Object.assign(this, { path, table, query });
    this.items = new Map();
    this.columns = [];
    this.state = 'loading'; // loading, live, waiting, failed
    this.problem = null;
    this.revision = '';
    this.pause = FIRST_PAUSE;
  }

  start() {
    this.stopped = new AbortController();
    this.list();
    return this;
  }

  stop() {
    this.stopped?.abort();
    this.close?.();
    clearTimeout(this.timer);
  }

  tell(state, problem = null) {
    this.state = state;
    this.problem = problem;
    this.dispatchEvent(new Event('change'));
  }

  async list() {
    const signal = this.stopped.signal;
    const fresh = new Map();
    const isFirst = this.items.size === 0;
    try {
      this.revision = await pages(this.path, { query: this.query, accept: this.table ? TABLE_TYPE : JSON_TYPE, signal }, (list) => {
        for (const item of this.read(list)) fresh.set(item.key, item);
        if (isFirst) {
          this.items = fresh;
          this.tell('loading');
        }
      });
    } catch (error) {
      if (signal.aborted) return;
      // A page that is too old: begin anew.
      if (error.isExpired) return this.again();
      return this.failed(error instanceof Problem ? error : unreadable(error));
    }
    if (signal.aborted) return;
    this.items = fresh;
    this.tell('live');
    this.watch();
  }

  watch() {
    const query = { ...this.query, watch: 1, allowWatchBookmarks: 'true', resourceVersion: this.revision, timeoutSeconds: WATCH_SECONDS };
    let expired = null;
    let broken = false;
    const began = Date.now();
    const each = lines((line) => {
      if (broken) return;
      try {
        const event = JSON.parse(line);
        if (event.type === 'ERROR') expired = new Problem(event.object);
        else this.apply(event);
      } catch (error) {
        // What was lost is nowhere else: begin anew.
        broken = true;
        this.close();
        this.failed(unreadable(error));
      }
    });
    this.close = open(this.table ? 'table' : 'stream', withQuery(this.path, query), {
      begun: () => {
        this.pause = FIRST_PAUSE;
        if (this.state !== 'live') this.tell('live');
      },
      text: each,
      ended: (problem) => {
        const why = expired ?? problem;
        // It ran its time; a server that ends watches at once isn't asked in a circle.
        if (!why) this.timer = setTimeout(() => this.watch(), Date.now() - began < 1000 ? 1000 : 0);
        else if (why.isExpired) this.again();
        else this.failed(why, () => this.watch());
      },
    });
  }

  apply({ type, object }) {
    for (const item of this.read(object)) {
      const revision = item.meta.resourceVersion;
      if (revision) this.revision = revision;
      if (type === 'BOOKMARK') continue;
      if (type === 'DELETED') this.items.delete(item.key);
      else this.items.set(item.key, item);
    }
    if (type !== 'BOOKMARK') this.dispatchEvent(new CustomEvent('change', { detail: type }));
  }

  // The items of a list, a table or an event's object.
  read(object) {
    if (object.kind === 'Table') {
      if (object.columnDefinitions?.length) this.columns = object.columnDefinitions;
      if (object.metadata?.resourceVersion && !object.rows?.length) this.revision = object.metadata.resourceVersion;
      return (object.rows ?? []).map((row) => {
        const meta = slim(row.object?.metadata ?? {});
        return { key: meta.uid ?? `${meta.namespace}/${meta.name}`, meta, cells: row.cells };
      });
    }
    const items = Array.isArray(object.items) ? object.items : object.metadata?.name || object.metadata?.resourceVersion ? [object] : [];
    return items.map((item) => {
      if (item.metadata) delete item.metadata.managedFields;
      return { ...item, key: item.metadata.uid ?? item.metadata.name, meta: item.metadata };
    });
  }

  again() {
    const soon = Date.now() - (this.expiredAt ?? 0) > 10_000;
    this.expiredAt = Date.now();
    this.timer = setTimeout(() => this.list(), soon ? 50 : 3000);
  }

  failed(problem, then = () => this.list()) {
    // What one may not do, or isn't there, doesn't get better by asking often.
    const settled = problem.isForbidden || problem.code === 404 || problem.code === 405;
    this.tell(settled ? 'failed' : 'waiting', problem);
    const pause = settled ? LONGEST_PAUSE : this.pause * (0.75 + Math.random() / 2);
    this.pause = Math.min(this.pause * 2, LONGEST_PAUSE);
    this.next = then;
    this.timer = setTimeout(then, pause);
  }

  // The API is back: nobody waits on.
  hurry() {
    if (this.state !== 'waiting' || !this.next) return;
    clearTimeout(this.timer);
    const { next } = this;
    this.next = null;
    next();
  }
}

function unreadable(error) {
  return new Problem({ code: 500, reason: 'Unknown', message: `what the API answered can't be read: ${error.message}` });
}

function slim({ name, namespace, uid, resourceVersion, creationTimestamp, deletionTimestamp, labels, ownerReferences }) {
  return { name, namespace, uid, resourceVersion, creationTimestamp, deletionTimestamp, labels, ownerReferences };
}

// Views that show the same collection share it, and it outlives a change of view for a while.
const LINGER = 15_000;
const shared = new Map();
link.addEventListener('change', ({ detail }) => detail || shared.forEach(({ reflector }) => reflector.hurry()));

export function follow(path, options, changed) {
  const key = JSON.stringify([path, options?.table ?? true, options?.query ?? {}]);
  let held = shared.get(key);
  if (!held) {
    held = { reflector: new Reflector(path, options).start(), users: 0, timer: 0 };
    shared.set(key, held);
  }
  clearTimeout(held.timer);
  held.users += 1;
  const listener = (event) => changed(held.reflector, event.detail);
  held.reflector.addEventListener('change', listener);
  queueMicrotask(() => left || changed(held.reflector));
  let left = false;
  return {
    reflector: held.reflector,
    stop() {
      if (left) return;
      left = true;
      held.reflector.removeEventListener('change', listener);
      held.users -= 1;
      if (held.users > 0) return;
      held.timer = setTimeout(() => {
        held.reflector.stop();
        shared.delete(key);
      }, LINGER);
    },
  };
}
