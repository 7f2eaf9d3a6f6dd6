// The cluster at a glance: how much there is, and what isn't well, with the way to why.

import { atMost, h, fill } from '../lib/dom.js';
import { missing } from '../lib/api.js';
import { collection, NODES, PODS, DEPLOYMENTS, STATEFULSETS, DAEMONSETS, JOBS, CLAIMS, EVENTS } from '../lib/discovery.js';
import { age, bytes, cores, count, share, tone } from '../lib/format.js';
import { NODE_USE, saysNone } from '../lib/metrics.js';
import { follow } from '../lib/reflector.js';
import { address, toKind, toObject } from '../lib/router.js';
import { eventRow, when } from './events.js';

const LISTED = 40;
const WATCHED = [NODES, PODS, DEPLOYMENTS, STATEFULSETS, DAEMONSETS, JOBS, CLAIMS];

export async function overview(shell) {
  const figures = h('div', { class: 'cards' });
  const ill = h('section', { class: 'card' });
  const warnings = h('section', { class: 'card' });
  const of = new Map();
  const draw = atMost(() => {
    fill(figures, nodesFigure(of.get(NODES)), podsFigure(of.get(PODS), shell.namespace), workloadsFigure(of), useFigure());
    drawIll(ill, of);
    drawWarnings(warnings, of.get(EVENTS));
  }, 300);
  const held = [...WATCHED.map((kind) => [kind, {}]), [EVENTS, { table: false, query: { fieldSelector: 'type=Warning' } }]]
    .map(([kind, options]) => follow(collection(kind, kind.namespaced ? shell.namespace : ''), options, (reflector) => { of.set(kind, reflector); draw(); }));
  NODE_USE.start().addEventListener('change', draw);
  draw();
  return {
    title: 'Overview',
    element: h('div', { class: 'view' },
      h('div', { class: 'heading' }, h('h1', null, 'Overview'), h('span', { class: 'muted' }, shell.namespace ? `namespace ${shell.namespace}` : 'all namespaces')),
      h('div', { class: 'scrolls', tabindex: 0, role: 'region', 'aria-label': 'Overview' }, h('div', { class: 'page' }, figures, h('div', { class: 'split' }, ill, warnings)))),
    refined: undefined,
    stop() {
      held.forEach((one) => one.stop());
      NODE_USE.removeEventListener('change', draw);
      NODE_USE.stop();
    },
  };
}

function figure(title, big, says, parts) {
  const all = (parts ?? []).reduce((total, [, n]) => total + n, 0);
  const bar = all ? h('div', { class: 'bar', 'aria-hidden': 'true' }, parts.map(([name, n]) => {
    const part = h('i', { class: name });
    part.style.width = `${(n / all) * 100}%`;
    return part;
  })) : null;
  return h('section', { class: 'card figure' }, h('h2', { class: 'muted' }, title), h('div', { class: 'big' }, big), h('div', { class: 'muted num' }, says), bar);
}

function isEarly(reflector) {
  return isUnknown(reflector) && !reflector?.items.size;
}

// It hasn't been listed as a whole yet.
function isUnknown(reflector) {
  return !reflector || reflector.state === 'loading' || (reflector.state === 'waiting' && !reflector.revision);
}

function cellsOf(reflector, name) {
  const at = reflector?.columns.findIndex((c) => c.name === name) ?? -1;
  return at < 0 ? [] : [...reflector.items.values()].map((row) => String(row.cells[at] ?? ''));
}

function nodesFigure(reflector) {
  if (reflector?.state === 'failed') return figure(link(NODES, 'Nodes'), '–', missing(reflector.problem) ?? reflector.problem.message);
  if (isEarly(reflector)) return figure(link(NODES, 'Nodes'), '…', 'looking');
  const states = cellsOf(reflector, 'Status');
  const ready = states.filter((s) => s.split(',')[0] === 'Ready').length;
  const cordoned = states.filter((s) => s.includes('SchedulingDisabled')).length;
  return figure(link(NODES, 'Nodes'), states.length.toLocaleString('en'), `${ready} ready${cordoned ? `, ${cordoned} cordoned` : ''}`, [['good', ready], ['bad', states.length - ready]]);
}

function podsFigure(reflector, namespace) {
  if (reflector?.state === 'failed') return figure(link(PODS, 'Pods'), '–', missing(reflector.problem) ?? reflector.problem.message);
  if (isEarly(reflector)) return figure(link(PODS, 'Pods', namespace), '…', 'looking');
  const tally = { good: 0, warn: 0, bad: 0, '': 0 };
  const ready = cellsOf(reflector, 'Ready');
  cellsOf(reflector, 'Status').forEach((status, at) => {
    const [n, of] = share(ready[at]) ?? [1, 1];
    const how = tone(status);
    tally[how === 'good' && n < of ? 'warn' : how] += 1;
  });
  const all = reflector?.items.size ?? 0;
  const words = [[tally.good, 'run'], [tally.warn, 'wait'], [tally.bad, 'fail'], [tally[''], 'done']].filter(([n]) => n).map(([n, what]) => `${n.toLocaleString('en')} ${what}`);
  return figure(link(PODS, 'Pods', namespace), all.toLocaleString('en'), words.join(', ') || 'none', Object.entries(tally));
}

function workloadsFigure(of) {
  const failed = [DEPLOYMENTS, STATEFULSETS, DAEMONSETS].map((kind) => of.get(kind)).find((reflector) => reflector?.state === 'failed');
  if (failed) return figure('Workloads', '–', missing(failed.problem) ?? failed.problem.message);
  if ([DEPLOYMENTS, STATEFULSETS, DAEMONSETS].some((kind) => isEarly(of.get(kind)))) return figure('Workloads', '…', 'looking');
  let [all, well] = [0, 0];
  for (const kind of [DEPLOYMENTS, STATEFULSETS, DAEMONSETS]) {
    for (const row of of.get(kind)?.items.values() ?? []) {
      all += 1;
      if (!isIll(kind, of.get(kind), row)) well += 1;
    }
  }
  return figure('Workloads', all.toLocaleString('en'), all ? `${well} of ${all} have all their pods` : 'none', [['good', well], ['warn', all - well]]);
}

function useFigure() {
  const now = NODE_USE.total().at(-1);
  return figure(h('a', { href: address(['usage']) }, 'Resource use'), now ? `${cores(now.cpu)} CPU` : '–', now ? `${bytes(now.memory)} memory, of all nodes` : NODE_USE.problem ? saysNone(NODE_USE.problem) : 'looking');
}

function link(kind, label, namespace) {
  return h('a', { href: toKind(kind, { ns: kind.namespaced ? namespace : '' }) }, label);
}

// Why a row of a table isn't as it should be, in a word; '' if it is.
function isIll(kind, reflector, row) {
  const cell = (name) => String(row.cells[reflector.columns.findIndex((c) => c.name === name)] ?? '');
  if (kind === DAEMONSETS) return Number(cell('Ready')) < Number(cell('Desired')) ? `${cell('Ready')} of ${cell('Desired')} ready` : '';
  const parts = share(cell('Ready'));
  if (kind === DEPLOYMENTS || kind === STATEFULSETS) return parts && parts[0] < parts[1] ? `${parts[0]} of ${parts[1]} ready` : '';
  const status = cell('Status');
  if (kind === NODES) return status.split(',')[0] === 'Ready' ? '' : status;
  if (kind === PODS && tone(status) === 'good') return parts && parts[0] < parts[1] ? 'not ready' : '';
  return ['good', ''].includes(tone(status)) ? '' : status;
}

function drawIll(into, of) {
  const all = WATCHED.flatMap((kind) => {
    const reflector = of.get(kind);
    if (!reflector?.columns.length) return [];
    return [...reflector.items.values()].map((row) => ({ kind, row, says: isIll(kind, reflector, row) })).filter((x) => x.says);
  });
  const rank = { bad: 0, warn: 1 };
  all.sort((a, b) => (rank[tone(a.says)] ?? 1) - (rank[tone(b.says)] ?? 1));
  const loading = WATCHED.some((kind) => isUnknown(of.get(kind)));
  // What one may not see isn't known to be well.
  const unseen = WATCHED.filter((kind) => of.get(kind)?.state === 'failed').map((kind) => kind.resource);
  const none = loading ? 'Looking …' : unseen.length ? `Nothing, as far as you may see: not ${unseen.join(', ')}.` : 'Everything is as it should be.';
  fill(into, h('header', null, h('h2', null, 'Not well'), h('span', { class: 'muted num' }, all.length ? all.length.toLocaleString('en') : '')),
    all.length ? null : h('div', { class: 'body muted' }, none),
    h('ul', { class: 'rows' }, all.slice(0, LISTED).map(({ kind, row, says }) => h('li', null,
      h('span', { class: 'what' }, h('span', { class: `dot ${tone(says) || 'warn'}` }), ' ', h('span', { class: 'muted' }, kind.kind), ' ',
        h('a', { href: toObject(kind, row.meta.namespace, row.meta.name) }, row.meta.name), row.meta.namespace ? h('span', { class: 'muted' }, ` in ${row.meta.namespace}`) : null),
      h('span', null, h('span', { class: tone(says) || 'warn' }, says), h('span', { class: 'muted num' }, ` · ${age(row.meta.creationTimestamp)} · `), h('a', { href: toObject(kind, row.meta.namespace, row.meta.name, 'why'), 'aria-label': `Why is ${row.meta.name} not well?` }, 'Why?')))),
    all.length > LISTED ? h('li', { class: 'muted' }, `and ${count(all.length - LISTED, 'more', 'more')}: the kinds' tables have them`) : null));
}

function drawWarnings(into, reflector) {
  const all = [...(reflector?.items.values() ?? [])].sort((a, b) => (when(a) < when(b) ? 1 : -1));
  const none = isUnknown(reflector) ? 'Looking …' : reflector.state === 'failed' ? reflector.problem.message : 'None within the last hour.';
  fill(into, h('header', null, h('h2', null, 'Warnings'), h('span', { class: 'muted num' }, all.length ? all.length.toLocaleString('en') : ''), h('span', { class: 'grow' }), h('a', { href: address(['events'], { type: 'Warning' }) }, 'Time line')),
    all.length ? null : h('div', { class: 'body muted' }, none),
    h('ul', { class: 'rows' }, all.slice(0, 12).map((event) => eventRow(event, true))));
}
