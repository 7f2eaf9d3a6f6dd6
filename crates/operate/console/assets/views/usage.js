// What nodes and pods use: plots of what was sampled while the page is open, and a table of who uses most.

import { h, fill } from '../lib/dom.js';
import { getJson } from '../lib/api.js';
import { collection, NODES, PODS } from '../lib/discovery.js';
import { bytes, cores, quantity } from '../lib/format.js';
import { NODE_USE, podUse, saysNone } from '../lib/metrics.js';
import { plot } from '../lib/plot.js';
import { toObject } from '../lib/router.js';

const MOST = 100;

export async function usageView(shell) {
  const plots = h('div', { class: 'plots' });
  const nodes = h('section', { class: 'card' });
  const pods = h('section', { class: 'card' });
  const use = podUse(shell.namespace);
  let room = new Map();
  getJson(collection(NODES)).then(({ items }) => {
    room = new Map(items.map((n) => [n.metadata.name, { cpu: quantity(n.status.allocatable?.cpu), memory: quantity(n.status.allocatable?.memory) }]));
    draw();
  }, () => {});
  function draw() {
    if (NODE_USE.problem) fill(plots, h('div', { class: 'notice' }, saysNone(NODE_USE.problem)));
    else {
      const all = NODE_USE.total();
      const whole = [...room.values()].reduce((a, b) => ({ cpu: a.cpu + b.cpu, memory: a.memory + b.memory }), { cpu: 0, memory: 0 });
      fill(plots, plot('CPU of all nodes', all.map((s) => ({ time: s.time, value: s.cpu })), cores, whole.cpu), plot('Memory of all nodes', all.map((s) => ({ time: s.time, value: s.memory })), bytes, whole.memory));
    }
    fill(nodes, table('Nodes', [...NODE_USE.series], (name) => [NODES, '', name], (name) => room.get(name)));
    if (use.problem) fill(pods, h('div', { class: 'body' }, saysNone(use.problem)));
    else fill(pods, table(shell.namespace ? `Pods in ${shell.namespace}` : 'Pods', [...use.series], (key) => [PODS, ...key.split('/')]));
  }
  NODE_USE.start().addEventListener('change', draw);
  use.start().addEventListener('change', draw);
  draw();
  return {
    title: 'Resource use',
    element: h('div', { class: 'view' }, h('div', { class: 'heading' }, h('h1', null, 'Resource use'), h('span', { class: 'muted' }, 'sampled every 15 s')),
      h('div', { class: 'scrolls', tabindex: 0, role: 'region', 'aria-label': 'Resource use' }, h('div', { class: 'page' }, plots, h('div', { class: 'columns' }, nodes, pods)))),
    stop() {
      for (const samples of [NODE_USE, use]) {
        samples.removeEventListener('change', draw);
        samples.stop();
      }
    },
  };
}

function table(title, series, place, room = () => null) {
  const last = series.map(([name, all]) => [name, all[all.length - 1]]).sort((a, b) => b[1].memory - a[1].memory);
  const part = (used, of) => (of ? h('span', { class: 'muted' }, ` ${Math.round((used / of) * 100)} %`) : null);
  return [h('header', null, h('h2', null, title), h('span', { class: 'muted' }, last.length > MOST ? `the ${MOST} that use most memory of ${last.length}` : '')),
    h('div', { class: 'body' }, h('table', { class: 'small' },
      h('thead', null, h('tr', null, ['Name', 'CPU', 'Memory'].map((t) => h('th', { scope: 'col' }, t)))),
      h('tbody', null, last.slice(0, MOST).map(([name, now]) => {
        const has = room(name);
        return h('tr', null, h('td', null, h('a', { href: toObject(...place(name), 'usage') }, name)), h('td', { class: 'tight num' }, cores(now.cpu), part(now.cpu, has?.cpu)), h('td', { class: 'tight num' }, bytes(now.memory), part(now.memory, has?.memory)));
      }))))];
}

// The tab of one pod or node.
export function usageTab({ kind, namespace, name }) {
  const isNode = kind.resource === 'nodes';
  const samples = isNode ? NODE_USE : podUse(namespace);
  const page = h('div', { class: 'page' });
  let limits = {};
  const draw = () => {
    const all = samples.series.get(isNode ? name : `${namespace}/${name}`) ?? [];
    if (samples.problem) fill(page, h('div', { class: 'notice' }, saysNone(samples.problem)));
    else fill(page, h('div', { class: 'plots' }, plot('CPU', all.map((s) => ({ time: s.time, value: s.cpu })), cores, limits.cpu), plot('Memory', all.map((s) => ({ time: s.time, value: s.memory })), bytes, limits.memory)));
  };
  samples.start().addEventListener('change', draw);
  draw();
  return {
    element: h('div', { class: 'scrolls', tabindex: 0, role: 'region', 'aria-label': 'Resource use' }, page),
    changed(object) {
      const sum = (key) => object.spec.containers.reduce((total, c) => total + quantity(c.resources?.limits?.[key]), 0);
      limits = isNode ? { cpu: quantity(object.status.allocatable?.cpu), memory: quantity(object.status.allocatable?.memory) } : { cpu: sum('cpu') || undefined, memory: sum('memory') || undefined };
      draw();
    },
    stop() {
      samples.removeEventListener('change', draw);
      samples.stop();
    },
  };
}
