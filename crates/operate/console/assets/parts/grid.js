// A table of any length: only the rows in sight are elements, and those are used again while one scrolls.

import { h, id, perFrame, setText, setWidth } from '../lib/dom.js';

const HEIGHT = 30;
const AROUND = 8;
const WIDEST = 52;
const LETTER = 7.1;

// `columns`: {name, text(row), tone(row), sort(row), link(row), min}. `open(row)` for Enter and a click.
export class Grid {
  constructor({ label, open, sort, sorted }) {
    Object.assign(this, { open, sorted, sortBy: sort ?? null, columns: [], rows: [], shown: [], chosen: null });
    this.prefix = id('grid');
    this.group = h('colgroup');
    this.head = h('tr', { role: 'row', 'aria-rowindex': 1 });
    this.above = spacer();
    this.below = spacer();
    this.body = h('tbody', { role: 'rowgroup' }, this.above, this.below);
    this.pool = [];
    this.table = h('table', { role: 'presentation' }, this.group, h('thead', { role: 'rowgroup' }, this.head), this.body);
    this.element = h('div', {
      class: 'grid', tabindex: 0, role: 'grid', 'aria-readonly': 'true', 'aria-label': `${label}: arrows move, Enter opens`,
      on: { scroll: () => this.draw(), keydown: (e) => this.key(e), click: (e) => this.click(e) },
    }, this.table);
    this.draw = this.draw.bind(this);
    this.drawSoon = perFrame(this.draw);
    this.sizes = new ResizeObserver(this.drawSoon);
    this.sizes.observe(this.element);
  }

  setColumns(columns) {
    const names = columns.map((c) => c.name).join('\n');
    if (names === this.columns.map((c) => c.name).join('\n')) {
      this.columns = columns;
      return;
    }
    this.columns = columns;
    this.widths = columns.map((c) => Math.max(c.min ?? 0, c.name.length + 2));
    this.group.replaceChildren(...columns.map(() => h('col')));
    this.head.replaceChildren(...columns.map((column, at) => h('th', { role: 'columnheader', scope: 'col', 'aria-colindex': at + 1 },
      h('button', { on: { click: () => this.turn(column) } }, column.name))));
    for (const row of this.pool) row.remove();
    this.pool = [];
    this.mark();
  }

  mark() {
    [...this.head.children].forEach((cell, at) => {
      const mine = this.sortBy && this.sortBy.name === this.columns[at].name;
      cell.setAttribute('aria-sort', mine ? (this.sortBy.down ? 'descending' : 'ascending') : 'none');
    });
  }

  turn(column) {
    const mine = this.sortBy?.name === column.name;
    this.sortBy = mine && this.sortBy.down ? null : { name: column.name, down: mine };
    this.sorted?.(this.sortBy);
    this.mark();
    this.setRows(this.rows);
  }

  setRows(rows) {
    this.rows = rows;
    this.shown = this.order(rows);
    this.measure();
    this.element.setAttribute('aria-rowcount', rows.length + 1);
    this.drawSoon();
  }

  order(rows) {
    const column = this.sortBy && this.columns.find((c) => c.name === this.sortBy.name);
    if (!column) return rows;
    const keyed = rows.map((row) => [column.sort ? column.sort(row) : column.text(row), row]);
    keyed.sort(([a], [b]) => compare(a, b));
    if (this.sortBy.down) keyed.reverse();
    return keyed.map(([, row]) => row);
  }

  // Columns only grow: a table that jumps can't be read.
  measure() {
    this.columns.forEach((column, at) => {
      let widest = this.widths[at];
      for (const row of this.shown) widest = Math.max(widest, Math.min(column.text(row).length, WIDEST));
      this.widths[at] = widest;
      setWidth(this.group.children[at], `${Math.round(widest * LETTER) + (at === 0 ? 34 : 24)}px`);
    });
  }

  draw() {
    const all = this.shown.length;
    const room = this.element.clientHeight || 600;
    const first = Math.max(0, Math.min(Math.floor(this.element.scrollTop / HEIGHT) - AROUND, all - 1));
    const last = Math.min(all, first + Math.ceil(room / HEIGHT) + 2 * AROUND);
    setHeight(this.above, first * HEIGHT);
    setHeight(this.below, (all - last) * HEIGHT);
    while (this.pool.length < last - first) {
      const row = this.row();
      this.pool.push(row);
      this.below.before(row);
    }
    while (this.pool.length > last - first) this.pool.pop().remove();
    this.pool.forEach((element, at) => this.put(element, this.shown[first + at], first + at));
    const active = this.pool.find((e) => e.getAttribute('aria-selected') === 'true');
    if (active) this.element.setAttribute('aria-activedescendant', active.id);
    else this.element.removeAttribute('aria-activedescendant');
  }

  row() {
    return h('tr', { class: 'row', role: 'row', id: id(this.prefix) }, this.columns.map((column, at) => h('td', { role: 'gridcell', 'aria-colindex': at + 1 },
      column.tone ? h('span', { class: 'dot' }) : null,
      column.link ? h('a', { tabindex: -1 }) : h('span'))));
  }

  put(element, row, index) {
    element.row = row;
    element.setAttribute('aria-rowindex', index + 2);
    element.setAttribute('aria-selected', row.key === this.chosen ? 'true' : 'false');
    this.columns.forEach((column, at) => {
      const cell = element.children[at];
      const text = column.text(row);
      setText(cell.lastChild, text);
      if (text.length > 30) cell.title = text;
      else cell.removeAttribute('title');
      if (column.link) cell.lastChild.setAttribute('href', column.link(row));
      if (!column.tone) return;
      const tone = column.tone(row);
      cell.firstChild.className = `dot ${tone}`;
      cell.lastChild.className = tone;
    });
  }

  click(event) {
    const element = event.target.closest('tr.row');
    if (!element || event.target.closest('a') || String(getSelection())) return;
    this.chosen = element.row.key;
    this.open(element.row);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(this.element.clientHeight / HEIGHT) - 2);
    const steps = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    const at = this.shown.findIndex((row) => row.key === this.chosen);
    if (event.key === 'Enter' && at >= 0 && !event.target.closest('button, a')) {
      event.preventDefault();
      this.open(this.shown[at]);
    } else if (event.key in steps && this.shown.length) {
      event.preventDefault();
      const step = steps[event.key];
      const to = at < 0 && Math.abs(step) === 1 ? 0 : Math.max(0, Math.min(this.shown.length - 1, Math.max(at, 0) + step));
      this.choose(to);
    }
  }

  choose(index) {
    this.chosen = this.shown[index].key;
    const top = index * HEIGHT;
    const room = this.element.clientHeight - 32 - HEIGHT;
    if (top < this.element.scrollTop) this.element.scrollTop = top;
    else if (top > this.element.scrollTop + room) this.element.scrollTop = top - room;
    this.draw();
  }

  stop() {
    this.sizes.disconnect();
  }
}

function spacer() {
  return h('tr', { class: 'spacer', 'aria-hidden': 'true', role: 'presentation' }, h('td'));
}

function setHeight(element, height) {
  element.firstChild.style.height = `${height}px`;
}

const collator = new Intl.Collator('en', { numeric: true });
function compare(a, b) {
  if (typeof a === 'number' && typeof b === 'number') return a - b;
  return collator.compare(a, b);
}
