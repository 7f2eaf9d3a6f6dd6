// Any kind as the table that the server makes of it, kept up to date.

import { atMost, h, fill, perFrame } from '../lib/dom.js';
import { missing } from '../lib/api.js';
import { collection, find } from '../lib/discovery.js';
import { age, count, plainKind, share, tone } from '../lib/format.js';
import { follow } from '../lib/reflector.js';
import { go, refine, toObject } from '../lib/router.js';
import { Grid } from '../parts/grid.js';

const STATUS = /^(status|ready|phase|available|reason|type|conditions?)$/i;

export async function kindView(shell, { parts, query }) {
  const [, group, version, resource] = parts;
  const kind = await find(group === 'core' ? '' : group, version, resource);
  if (!kind) throw new Error(`The API has no ${resource}${group === 'core' ? '' : `.${group}`} (${version}).`);
  return new KindView(shell, kind, query);
}

class KindView {
  constructor(shell, kind, query) {
    Object.assign(this, { shell, kind, query, title: kind.kind, columnsOf: null });
    this.counted = h('span', { class: 'count', role: 'status' });
    this.says = h('div');
    this.wide = h('input', { type: 'checkbox', checked: query.wide === '1', on: { change: () => refine({ wide: this.wide.checked ? '1' : '' }) } });
    const selector = (name, label, hint) => h('input', {
      'aria-label': label, placeholder: hint, value: query[name] ?? '', spellcheck: 'false', autocomplete: 'off', on: { change: (e) => refine({ [name]: e.target.value.trim() }) },
    });
    this.grid = new Grid({
      label: kind.kind, sort: sortOf(query.sort), open: (row) => go(this.link(row)),
      sorted: (by) => refine({ sort: by ? `${by.down ? '-' : ''}${by.name}` : '' }),
    });
    this.grid.element.dataset.first = '';
    this.element = h('div', { class: 'view' },
      h('div', { class: 'heading' }, h('h1', null, kind.kind), h('span', { class: 'muted' }, kind.group ? `${plainKind(kind)} ${kind.version}` : kind.version), this.counted, h('span', { class: 'grow' }),
        selector('l', 'Label selector', 'Labels: app=web'), selector('f', 'Field selector', 'Fields: spec.nodeName=n1'),
        h('label', { class: 'check' }, this.wide, 'All columns')),
      this.says, this.grid.element);
    this.draw = perFrame(() => this.drawNow());
    this.settle = atMost(() => this.drawNow(), 250);
    // Ages go on.
    this.clock = setInterval(() => this.grid.drawSoon(), 5000);
    this.follow();
  }

  link(row) {
    return toObject(this.kind, row.meta.namespace, row.meta.name);
  }

  follow() {
    const { l, f } = this.query;
    const path = collection(this.kind, this.shell.namespace);
    const key = [path, l, f].join('\n');
    if (key === this.followed) return;
    this.followed = key;
    const old = this.held;
    this.began = performance.now();
    this.held = follow(path, { query: { labelSelector: l, fieldSelector: f } }, (reflector, type) => {
      this.reflector = reflector;
      // In a storm of events a table needn't be sorted for each.
      if (type && reflector.items.size > 1000) this.settle();
      else this.draw();
    });
    old?.stop();
  }

  refined({ query }) {
    this.query = query;
    this.follow();
    this.columnsOf = null;
    this.draw();
  }

  drawNow() {
    const { reflector } = this;
    if (!reflector) return;
    this.complain(reflector);
    if (reflector.columns !== this.columnsOf && reflector.columns.length) {
      this.columnsOf = reflector.columns;
      this.grid.setColumns(this.columns(reflector.columns));
    }
    const wanted = (this.query.q ?? '').toLowerCase().split(/\s+/).filter(Boolean);
    const all = [...reflector.items.values()];
    const rows = wanted.length ? all.filter((row) => wanted.every((word) => textOf(row).includes(word))) : all;
    // By name, as the server lists; what came later is at the end of what is kept.
    rows.sort((a, b) => (nameOf(a) < nameOf(b) ? -1 : 1));
    this.grid.setRows(rows);
    const shown = rows.length === all.length ? '' : `${rows.length.toLocaleString('en')} of `;
    const state = { loading: ' …', waiting: ', not up to date' }[reflector.state] ?? '';
    fill(this.counted, reflector.state === 'failed' ? '' : `${shown}${all.length.toLocaleString('en')}${state}`);
    this.element.dataset.state = reflector.state;
    this.grid.element.classList.toggle('hidden', rows.length === 0 && reflector.state !== 'loading');
  }

  complain({ state, problem, items }) {
    const where = this.kind.namespaced && this.shell.namespace ? ` in namespace ${this.shell.namespace}` : '';
    if (state === 'failed') fill(this.says, h('div', { class: 'problem', role: 'alert' }, h('p', null, problem.message), h('p', { class: 'muted' }, missing(problem))));
    else if (state === 'live' && items.size === 0) fill(this.says, h('p', { class: 'empty' }, `No ${this.kind.resource}${where}${this.query.l || this.query.f ? ' that the selectors choose' : ''}.`));
    else if (state === 'live' && this.query.q && this.grid.shown.length === 0) fill(this.says, h('p', { class: 'empty' }, `None of ${count(items.size, 'object')} has “${this.query.q}”.`));
    else fill(this.says);
  }

  columns(definitions) {
    const own = definitions.map((d, at) => ({ ...d, at })).filter((d) => d.priority === 0 || this.query.wide === '1');
    const columns = own.map((d) => this.column(d));
    if (this.kind.namespaced && !this.shell.namespace) columns.splice(1, 0, { name: 'Namespace', text: (row) => row.meta.namespace ?? '' });
    return columns;
  }

  column({ name, at, type }) {
    const text = (row) => String(row.cells[at] ?? '');
    if (name === 'Name' && at === 0) return { name, text, link: (row) => this.link(row), min: 16 };
    if (name === 'Age') return { name, text: (row) => age(row.meta.creationTimestamp), sort: (row) => -Date.parse(row.meta.creationTimestamp) };
    if (name === 'Restarts') return { name, text, sort: (row) => parseInt(row.cells[at], 10) || 0 };
    if (type === 'integer' || type === 'number') return { name, text, sort: (row) => Number(row.cells[at] ?? 0) };
    if (!STATUS.test(name)) return { name, text };
    const isReady = /^ready$/i.test(name);
    return {
      name, text,
      tone: (row) => {
        const parts = share(row.cells[at]);
        if (!parts) return isReady ? '' : tone(row.cells[at]);
        return parts[0] < parts[1] && !/Completed|Succeeded/.test(row.cells.join(' ')) ? 'warn' : 'good';
      },
    };
  }

  stop() {
    this.held.stop();
    this.grid.stop();
    clearInterval(this.clock);
  }
}

function sortOf(text) {
  if (!text) return null;
  return text.startsWith('-') ? { name: text.slice(1), down: true } : { name: text, down: false };
}

// What one searches in; kept by the row, which is made anew when it changes.
function textOf(row) {
  row.text ??= [row.meta.namespace, ...row.cells].join(' ').toLowerCase();
  return row.text;
}

function nameOf(row) {
  row.order ??= `${row.meta.namespace ?? ''}/${row.meta.name}`;
  return row.order;
}
