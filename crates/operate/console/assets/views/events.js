// Events on a time line, and as a list: of the cluster, a namespace or one object.

import { h, svg, fill, perFrame } from '../lib/dom.js';
import { missing } from '../lib/api.js';
import { collection, ofReference, EVENTS } from '../lib/discovery.js';
import { age, count, moment } from '../lib/format.js';
import { follow } from '../lib/reflector.js';
import { refine, toObject } from '../lib/router.js';

// So many of the newest are listed, and lanes drawn.
const LISTED = 300;
const LANES = 24;

export async function eventsView(shell, { query }) {
  const onlyWarnings = h('input', { type: 'checkbox', checked: query.type === 'Warning', on: { change: () => refine({ type: onlyWarnings.checked ? 'Warning' : '' }) } });
  const panel = new Panel(true);
  const counted = h('span', { class: 'count', role: 'status' });
  let held;
  let asked = '';
  const begin = (now) => {
    const namespace = shell.namespace;
    const key = `${namespace}\n${now.type}`;
    panel.words = (now.q ?? '').toLowerCase().split(/\s+/).filter(Boolean);
    if (key === asked) return panel.draw();
    asked = key;
    held?.stop();
    held = follow(collection(EVENTS, namespace), { table: false, query: { fieldSelector: now.type ? `type=${now.type}` : '' } }, (reflector) => {
      panel.set(reflector);
      counted.textContent = reflector.items.size.toLocaleString('en');
    });
    return undefined;
  };
  begin(query);
  return {
    title: 'Events',
    element: h('div', { class: 'view' },
      h('div', { class: 'heading' }, h('h1', null, 'Events'), counted, h('span', { class: 'grow' }), h('label', { class: 'check' }, onlyWarnings, 'Only warnings')),
      h('div', { class: 'scrolls', tabindex: 0, role: 'region', 'aria-label': 'Events' }, panel.element)),
    refined: ({ query: now }) => begin(now),
    stop: () => { held.stop(); panel.stop(); },
  };
}

export function objectEventsTab({ kind, namespace, name, object }) {
  const panel = new Panel(false);
  const space = namespace || 'default';
  const held = follow(collection(EVENTS, kind.namespaced ? space : ''), { table: false, query: { fieldSelector: `involvedObject.name=${name},involvedObject.kind=${kind.kind}` } }, (reflector) => panel.set(reflector));
  return {
    element: h('div', { class: 'scrolls', tabindex: 0, role: 'region', 'aria-label': `Events of ${object.metadata.name}` }, panel.element),
    stop: () => { held.stop(); panel.stop(); },
  };
}

export function when(event) {
  return event.series?.lastObservedTime ?? event.lastTimestamp ?? event.eventTime ?? event.firstTimestamp ?? event.metadata.creationTimestamp;
}

function about(event) {
  return event.involvedObject ?? event.regarding ?? {};
}

class Panel {
  constructor(isMany) {
    this.isMany = isMany;
    this.words = [];
    this.line = h('div', { class: 'body' });
    this.list = h('ul', { class: 'rows' });
    this.head = h('h2', null, 'Newest first');
    this.element = h('div', { class: 'page' }, h('section', { class: 'card' }, h('header', null, h('h2', null, 'Time line')), this.line), h('section', { class: 'card' }, h('header', null, this.head), this.list));
    this.drawSoon = perFrame(() => this.draw());
    this.clock = setInterval(this.drawSoon, 15_000);
  }

  set(reflector) {
    this.reflector = reflector;
    this.drawSoon();
  }

  draw() {
    const { reflector } = this;
    if (!reflector) return;
    if (reflector.state === 'failed') {
      fill(this.line, h('p', { class: 'bad', role: 'alert' }, reflector.problem.message, ' ', missing(reflector.problem)));
      return;
    }
    const text = (e) => `${e.reason} ${e.message} ${about(e).name} ${about(e).kind} ${e.metadata.namespace}`.toLowerCase();
    const fits = (e) => this.words.every((word) => text(e).includes(word));
    const all = [...reflector.items.values()].filter(fits).sort((a, b) => (when(a) < when(b) ? 1 : -1));
    const most = all.slice(0, LISTED);
    fill(this.line, all.length ? timeline(all, this.isMany) : h('p', { class: 'muted' }, reflector.revision ? 'There are none. Events are kept for an hour.' : 'Loading …'));
    this.head.textContent = all.length > LISTED ? `The newest ${LISTED} of ${all.length.toLocaleString('en')}` : `${count(all.length, 'event')}, newest first`;
    fill(this.list, most.map((event) => eventRow(event, this.isMany)));
  }

  stop() {
    clearInterval(this.clock);
  }
}

export function eventRow(event, withObject) {
  const times = event.series?.count ?? event.count ?? 1;
  const row = h('li', null,
    h('span', { class: 'what' }, h('span', { class: `dot ${event.type === 'Warning' ? 'warn' : ''}` }), ' ', h('strong', null, event.reason), withObject ? [' ', objectLink(event)] : null),
    h('span', { class: 'muted num', title: moment(when(event)) }, times > 1 ? `${times}× · ` : '', `${age(when(event))} ago`),
    h('span', { class: 'says clip' }, event.message));
  return row;
}

function objectLink(event) {
  const { kind, namespace, name, apiVersion } = about(event);
  const shown = h('a', { href: '#/events' }, `${kind} ${namespace ? `${namespace}/` : ''}${name}`);
  ofReference(apiVersion, kind).then((found) => found && shown.setAttribute('href', toObject(found, found.namespaced ? namespace : '', name)), () => {});
  return shown;
}

// A lane an object, the one with the newest event first; a mark an event.
function timeline(all, isMany) {
  const lanes = new Map();
  for (const event of all) {
    const key = isMany ? `${about(event).kind} ${about(event).name}` : event.reason;
    if (!lanes.has(key)) lanes.set(key, []);
    lanes.get(key).push(event);
  }
  const shown = [...lanes.entries()].slice(0, LANES);
  const times = shown.flatMap(([, events]) => events.map((e) => Date.parse(when(e))));
  const end = Date.now();
  const begin = Math.min(...times, end - 5 * 60_000);
  const [width, label, lane, top] = [1100, 270, 22, 20];
  const x = (time) => label + ((time - begin) / (end - begin)) * (width - label - 14);
  const height = top + shown.length * lane + 4;
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((part) => begin + (end - begin) * part);
  return h('div', null,
    svg('svg', { class: 'timeline', viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': `Time line of ${count(all.length, 'event')}; the list below says the same` },
      ticks.map((time) => [
        svg('line', { x1: x(time), x2: x(time), y1: top - 4, y2: height }),
        svg('text', { x: x(time), y: 11, 'text-anchor': time === end ? 'end' : time === begin ? 'start' : 'middle' }, time === end ? 'now' : `${age(new Date(time).toISOString(), end)} ago`)]),
      shown.map(([name, events], at) => svg('g', null,
        svg('rect', { class: 'lane', x: label, y: top + at * lane + 3, width: width - label - 8, height: lane - 6, rx: 3 }),
        svg('text', { x: label - 8, y: top + at * lane + 15, 'text-anchor': 'end' }, name.length > 42 ? `${name.slice(0, 41)}…` : name),
        events.map((event) => svg('circle', { class: `mark ${event.type}`, cx: x(Date.parse(when(event))), cy: top + at * lane + lane / 2, r: 4.5 }, svg('title', null, `${event.reason}: ${event.message}`)))))),
    lanes.size > LANES ? h('p', { class: 'muted' }, `The ${LANES} with the newest events of ${lanes.size}.`) : null);
}
