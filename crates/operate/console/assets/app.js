// The start: the frame, and for each address its view. A view is `(shell, route) => {element, title, stop?, refined?}`.

import { h, fill } from './lib/dom.js';
import { current, refine, address } from './lib/router.js';
import { missing } from './lib/api.js';
import { Shell } from './parts/shell.js';
import { overview } from './views/overview.js';
import { kindView } from './views/kind.js';
import { objectView } from './views/object.js';
import { eventsView } from './views/events.js';
import { usageView } from './views/usage.js';
import { topologyView } from './views/topology.js';

const VIEWS = { r: kindView, o: objectView, events: eventsView, usage: usageView, topology: topologyView };

const shell = new Shell();
let shown = null;
let turn = 0;

async function show() {
  const mine = ++turn;
  let route = current();
  // The namespace that was chosen elsewhere: an address says all that is shown.
  if (route.query.ns === undefined && shell.namespace && route.parts[0] !== 'o') {
    history.replaceState(null, '', address(route.parts, { ...route.query, ns: shell.namespace }));
    route = current();
  }
  const view = route.parts.length === 0 ? overview : VIEWS[route.parts[0]];
  let next;
  try {
    if (!view) throw new Error('There is no such view.');
    next = await view(shell, route);
  } catch (error) {
    next = { element: problem(error), title: 'Not there' };
  }
  if (mine !== turn) {
    next.stop?.();
    return;
  }
  shown?.stop?.();
  shown = next;
  fill(shell.main, next.element);
  document.title = `${next.title} · Keelson`;
  shell.show();
  const focus = next.element.querySelector?.('[data-first]') ?? shell.main;
  if (document.activeElement === document.body || !document.activeElement?.isConnected || shell.main.contains(document.activeElement)) focus.focus({ preventScroll: true });
}

function problem(error) {
  return h('div', { class: 'problem' }, h('p', null, error.message), error.said ? h('p', { class: 'muted' }, missing(error)) : null, h('p', null, h('a', { href: address([]) }, 'Overview')));
}

window.addEventListener('hashchange', show);
window.addEventListener('refined', () => {
  shell.show();
  if (shown?.refined) shown.refined(current());
  else show();
});
if (location.hash.length < 2) refine({});
show();
