// How things hang together: nodes and their pods, services and what answers for them, owners and owned.

import { h, svg, fill, later } from '../lib/dom.js';
import { missing, pages, METADATA_LIST, TABLE_TYPE } from '../lib/api.js';
import { collection, NODES, PODS, SERVICES, SLICES, DEPLOYMENTS, REPLICASETS, STATEFULSETS, DAEMONSETS, JOBS } from '../lib/discovery.js';
import { share, tone } from '../lib/format.js';
import { follow } from '../lib/reflector.js';
import { refine, toKind, toObject } from '../lib/router.js';

const WAYS = [['nodes', 'Nodes and pods'], ['services', 'Services and pods'], ['owners', 'Owners and pods']];
// Pods of a group that are drawn; the rest is a number with a link.
const MOST = 60;
const GROUPS = 60;
const [BOX, TALL, GAP] = [190, 34, 10];

export async function topologyView(shell, { query }) {
  let by = query.by ?? 'nodes';
  const map = h('div', { class: 'map', tabindex: 0, role: 'region', 'aria-label': 'Topology' });
  const buttons = WAYS.map(([key, label]) => h('button', { 'aria-pressed': String(key === by), on: { click: () => refine({ by: key }) } }, label));
  let pods = null;
  let turn = 0;
  const draw = later(async () => {
    const mine = ++turn;
    if (!pods) return;
    if (pods.state === 'failed') return fill(map, h('div', { class: 'problem', role: 'alert' }, h('p', null, pods.problem.message), h('p', { class: 'muted' }, missing(pods.problem))));
    try {
      const groups = await { nodes: byNode, services: byService, owners: byOwner }[by](read(pods), shell.namespace);
      if (mine === turn) fill(map, groups.length ? drawGroups(groups) : h('p', { class: 'empty' }, pods.revision ? 'There is nothing to show.' : 'Loading …'));
    } catch (error) {
      if (mine === turn) fill(map, h('div', { class: 'problem', role: 'alert' }, h('p', null, error.message), h('p', { class: 'muted' }, missing(error))));
    }
    return undefined;
  }, 150);
  const held = follow(collection(PODS, shell.namespace), {}, (reflector) => { pods = reflector; draw(); });
  let space = shell.namespace;
  let current = held;
  return {
    title: 'Topology',
    element: h('div', { class: 'view' }, h('div', { class: 'heading' }, h('h1', null, 'Topology'), h('span', { class: 'grow' }), h('div', { class: 'toolbar', role: 'group', 'aria-label': 'Grouped by' }, buttons)), map),
    refined({ query: now }) {
      by = now.by ?? 'nodes';
      buttons.forEach((button, at) => button.setAttribute('aria-pressed', String(WAYS[at][0] === by)));
      if (shell.namespace !== space) {
        space = shell.namespace;
        current.stop();
        pods = null;
        current = follow(collection(PODS, space), {}, (reflector) => { pods = reflector; draw(); });
      }
      draw();
    },
    stop: () => { turn += 1; current.stop(); },
  };
}

function read(reflector) {
  const at = (name) => reflector.columns.findIndex((c) => c.name === name);
  const [status, ready, node] = [at('Status'), at('Ready'), at('Node')];
  return [...reflector.items.values()].map(({ meta, cells }) => {
    const parts = share(cells[ready]);
    const how = tone(cells[status]);
    return {
      uid: meta.uid, name: meta.name, namespace: meta.namespace, owners: meta.ownerReferences ?? [], node: cells[node], status: String(cells[status]),
      tone: how === 'good' && parts && parts[0] < parts[1] ? 'warn' : how, kind: PODS,
    };
  });
}

async function all(kind, namespace, accept) {
  const found = [];
  await pages(collection(kind, namespace), { accept }, (list) => found.push(...(accept === TABLE_TYPE ? (list.rows ?? []).map((row) => ({ metadata: row.object.metadata, cells: row.cells })) : list.items)));
  return found;
}

async function byNode(pods) {
  const nodes = await all(NODES, '', TABLE_TYPE);
  const groups = nodes.map((n) => ({ head: { kind: NODES, name: n.metadata.name, tone: tone(n.cells[1]), says: n.cells[1] }, pods: pods.filter((p) => p.node === n.metadata.name), more: toKind(PODS, { ns: '-', f: `spec.nodeName=${n.metadata.name}` }) }));
  const none = pods.filter((p) => !nodes.some((n) => n.metadata.name === p.node));
  return none.length ? [{ head: { label: 'No node', says: 'they wait' }, pods: none, more: toKind(PODS, { f: 'spec.nodeName=' }) }, ...groups] : groups;
}

async function byService(pods, namespace) {
  const [services, slices] = await Promise.all([all(SERVICES, namespace), all(SLICES, namespace)]);
  const byUid = new Map(pods.map((p) => [p.uid, p]));
  return services.map((service) => {
    const own = slices.filter((s) => s.metadata.namespace === service.metadata.namespace && s.metadata.labels?.['kubernetes.io/service-name'] === service.metadata.name);
    const ends = own.flatMap((s) => s.endpoints ?? []);
    const answering = [...new Set(ends.map((e) => e.targetRef?.uid))].map((uid) => byUid.get(uid)).filter(Boolean);
    const ready = ends.filter((e) => e.conditions?.ready !== false).length;
    const ports = (service.spec.ports ?? []).map((p) => p.port).join(', ');
    const selects = Boolean(service.spec.selector);
    return {
      head: { kind: SERVICES, namespace: service.metadata.namespace, name: service.metadata.name, says: `${service.spec.type} ${ports} · ${ready} ready`, tone: ready ? 'good' : selects ? 'bad' : '' },
      pods: answering, more: toKind(PODS, { ns: service.metadata.namespace, l: Object.entries(service.spec.selector ?? {}).map(([k, v]) => `${k}=${v}`).join(',') }),
    };
  });
}

// From a pod by its owners up to who has none.
async function byOwner(pods, namespace) {
  const kinds = [REPLICASETS, JOBS];
  const above = new Map();
  await Promise.all(kinds.map((kind) => all(kind, namespace, METADATA_LIST).then((list) => list.forEach((o) => above.set(o.metadata.uid, o.metadata.ownerReferences?.[0])), () => {})));
  const known = [DEPLOYMENTS, REPLICASETS, STATEFULSETS, DAEMONSETS, JOBS, { group: 'batch', version: 'v1', resource: 'cronjobs', kind: 'CronJob', namespaced: true }, NODES];
  const groups = new Map();
  for (const pod of pods) {
    let owner = pod.owners[0];
    while (owner && above.get(owner.uid)) owner = above.get(owner.uid);
    const kind = owner && known.find((k) => k.kind === owner.kind);
    const key = owner?.uid ?? 'none';
    if (!groups.has(key)) {
      groups.set(key, {
        head: kind ? { kind, namespace: kind.namespaced ? pod.namespace : '', name: owner.name } : { label: owner ? `${owner.kind} ${owner.name}` : 'No owner' },
        pods: [], more: toKind(PODS, { ns: pod.namespace }),
      });
    }
    groups.get(key).pods.push(pod);
  }
  for (const group of groups.values()) {
    const well = group.pods.filter((p) => p.tone === 'good' || p.tone === '').length;
    group.head.says = `${well} of ${group.pods.length} well`;
    group.head.tone = well === group.pods.length ? 'good' : well ? 'warn' : 'bad';
  }
  return [...groups.values()];
}

function drawGroups(groups) {
  const shown = groups.slice(0, GROUPS);
  const room = Math.max(3, Math.floor((Math.max(700, document.querySelector('main').clientWidth) - BOX - 100) / (BOX + GAP)));
  const parts = [];
  let y = 16;
  for (const { head, pods, more } of shown) {
    // What isn't well comes first: it must not be behind a number.
    const order = [...pods].sort((a, b) => rank(a) - rank(b));
    const drawn = order.slice(0, MOST);
    const rows = Math.max(1, Math.ceil((drawn.length + (pods.length > MOST ? 1 : 0)) / room));
    const top = y;
    parts.push(box(20, top, head));
    drawn.forEach((pod, at) => {
      const [x, line] = [BOX + 80 + (at % room) * (BOX + GAP), top + Math.floor(at / room) * (TALL + GAP)];
      if (at % room === 0) parts.push(svg('path', { d: `M${20 + BOX} ${top + TALL / 2}C${BOX + 50} ${top + TALL / 2} ${BOX + 50} ${line + TALL / 2} ${x} ${line + TALL / 2}` }));
      parts.push(box(x, line, { ...pod, says: pod.status }));
    });
    if (pods.length > MOST) {
      const at = drawn.length;
      parts.push(svg('a', { href: more }, svg('text', { x: BOX + 88 + (at % room) * (BOX + GAP), y: top + Math.floor(at / room) * (TALL + GAP) + 21 }, `and ${(pods.length - MOST).toLocaleString('en')} more`)));
    }
    y += rows * (TALL + GAP) + 14;
  }
  if (groups.length > GROUPS) {
    parts.push(svg('text', { x: 20, y: y + 10 }, `and ${groups.length - GROUPS} more: choose a namespace`));
    y += 30;
  }
  const width = BOX + 100 + room * (BOX + GAP);
  return svg('svg', { width, height: y, viewBox: `0 0 ${width} ${y}`, role: 'group', 'aria-label': 'Map; every box is a link' }, parts);
}

function rank({ tone: how }) {
  return { bad: 0, warn: 1, good: 2 }[how] ?? 3;
}

function box(x, y, { kind, namespace, name, label, says, tone: how }) {
  const text = label ?? name;
  const inner = [
    svg('rect', { class: 'box', x, y, width: BOX, height: TALL, rx: 6 }, svg('title', null, text)),
    svg('text', { x: x + 10, y: y + 15 }, text.length > 27 ? `${text.slice(0, 12)}…${text.slice(-13)}` : text),
    svg('text', { class: 'kind', x: x + 10, y: y + 27.5 }, [kind && kind !== PODS ? kind.kind : '', says].filter(Boolean).join(' · ')),
  ];
  return kind ? svg('a', { class: how ?? '', href: toObject(kind, namespace, name) }, inner) : svg('g', { class: how ?? '' }, inner);
}
