// The frame around every view: side bar, search, namespace, theme, and what is said when the API is gone.

import { h, fill } from '../lib/dom.js';
import { getJson, link } from '../lib/api.js';
import { collection, NAMESPACES } from '../lib/discovery.js';
import { follow } from '../lib/reflector.js';
import { address, current, refine, toKind, go } from '../lib/router.js';
import { plainKind } from '../lib/format.js';
import * as keys from '../lib/keys.js';
import { help } from './help.js';
import { jump } from './jump.js';

const k = (letter, label, group, version, resource, namespaced = true) => ({ letter, label, group, version, resource, namespaced });
const SECTIONS = [
  ['Workloads', [k('p', 'Pods', '', 'v1', 'pods'), k('d', 'Deployments', 'apps', 'v1', 'deployments'), k('a', 'Stateful sets', 'apps', 'v1', 'statefulsets'),
    k('', 'Daemon sets', 'apps', 'v1', 'daemonsets'), k('j', 'Jobs', 'batch', 'v1', 'jobs'), k('', 'Cron jobs', 'batch', 'v1', 'cronjobs')]],
  ['Network', [k('s', 'Services', '', 'v1', 'services'), k('i', 'Ingresses', 'networking.k8s.io', 'v1', 'ingresses'), k('', 'Network policies', 'networking.k8s.io', 'v1', 'networkpolicies')]],
  ['Configuration', [k('c', 'Config maps', '', 'v1', 'configmaps'), k('x', 'Secrets', '', 'v1', 'secrets'), k('', 'Autoscalers', 'autoscaling', 'v2', 'horizontalpodautoscalers')]],
  ['Storage', [k('v', 'Claims', '', 'v1', 'persistentvolumeclaims'), k('', 'Volumes', '', 'v1', 'persistentvolumes', false)]],
  ['Cluster', [k('n', 'Nodes', '', 'v1', 'nodes', false), k('', 'Namespaces', '', 'v1', 'namespaces', false),
    k('', 'Definitions', 'apiextensions.k8s.io', 'v1', 'customresourcedefinitions', false)]],
];
const VIEWS = [['o', 'Overview', []], ['t', 'Topology', ['topology']], ['e', 'Events', ['events']], ['u', 'Resource use', ['usage']]];

export class Shell {
  constructor() {
    this.names = [];
    this.main = h('main', { id: 'main', tabindex: -1 });
    this.search = h('input', { type: 'search', placeholder: 'Search', 'aria-label': 'Search in this table', autocomplete: 'off', spellcheck: 'false' });
    this.search.addEventListener('input', () => refine({ q: this.search.value }));
    this.search.addEventListener('keydown', (event) => {
      if (event.key === 'Escape' || event.key === 'ArrowDown' || event.key === 'Enter') {
        event.preventDefault();
        this.main.querySelector('.grid')?.focus();
      }
    });
    this.space = h('select', { 'aria-label': 'Namespace', on: { change: () => this.setNamespace(this.space.value) } });
    this.nav = h('div', { class: 'items' });
    this.foot = h('div', { class: 'foot muted' });
    this.banner = h('div', { class: 'banner hidden', role: 'alert' });
    this.theme = h('button', { class: 'plain', on: { click: () => this.turnTheme() } });
    this.frame = h('div', { class: 'frame' },
      h('nav', { class: 'side', id: 'side', 'aria-label': 'Kinds and views' },
        h('a', { class: 'skip', href: '#/', on: { click: (event) => { event.preventDefault(); this.main.focus(); } } }, 'Skip to the content'),
        h('a', { class: 'brand', href: '#/' }, h('img', { src: '/icon.svg', alt: '' }), 'Keelson'), this.nav, this.foot),
      h('header', { class: 'top' },
        h('button', { class: 'plain menu', 'aria-label': 'Kinds and views', 'aria-controls': 'side', on: { click: () => this.frame.classList.toggle('open') } }, '☰'),
        h('div', { class: 'search' }, this.search, h('kbd', { 'aria-hidden': 'true' }, '/')),
        this.space, h('span', { class: 'grow' }),
        h('button', { on: { click: () => this.jump() } }, 'Go to', h('kbd', null, ':')),
        this.theme, h('button', { class: 'plain', 'aria-label': 'Keys', on: { click: help } }, '?')),
      h('div', { class: 'view-frame view' }, this.banner, this.main));
    document.body.replaceChildren(this.frame);
    this.setTheme(stored('theme') ?? '');
    this.keys();
    this.drawNav();
    this.followNames();
    link.addEventListener('change', ({ detail }) => {
      this.banner.classList.toggle('hidden', !detail);
      if (detail) fill(this.banner, h('strong', null, 'No connection.'), detail, ' It is tried again by itself; what is shown may be old.');
    });
    getJson('/console/about').then((about) => {
      this.about = about;
      fill(this.foot, [about.context, about.server].filter(Boolean).join(' · '));
      this.foot.title = `Keelson ${about.version}`;
    }, () => {});
  }

  // The namespace that views show; '' is all.
  get namespace() {
    const asked = current().query.ns;
    return asked === undefined ? stored('namespace') ?? '' : asked === '-' ? '' : asked;
  }

  setNamespace(name) {
    store('namespace', name);
    const { parts } = current();
    if (parts[0] === 'o') go(address(['r', parts[1], parts[2], parts[3]], { ns: name || '-' }));
    else refine({ ns: name || '-' });
    this.show();
  }

  // Brings bar and marks up to what the address says.
  show() {
    const { parts, query } = current();
    if (this.search.value !== (query.q ?? '')) this.search.value = query.q ?? '';
    this.search.disabled = !['r', 'events'].includes(parts[0]);
    this.drawSpaces();
    this.drawNav();
    this.frame.classList.remove('open');
  }

  drawSpaces() {
    const chosen = this.namespace;
    const names = this.names.includes(chosen) || !chosen ? this.names : [chosen, ...this.names];
    fill(this.space, h('option', { value: '' }, 'All namespaces'), names.map((name) => h('option', { value: name }, name)));
    this.space.value = chosen;
  }

  drawNav() {
    const { parts } = current();
    const here = parts[0] === 'r' || parts[0] === 'o' ? `${parts[1] === 'core' ? '' : parts[1]}/${parts[3]}` : '';
    const item = (label, to, isHere, letter) => h('a', { class: 'item', href: to, 'aria-current': isHere ? 'page' : null }, label, letter ? h('kbd', { 'aria-hidden': 'true' }, `g ${letter}`) : null);
    const listed = SECTIONS.flatMap(([, kinds]) => kinds.map((kind) => `${kind.group}/${kind.resource}`));
    const other = here && !listed.includes(here) ? { group: parts[1] === 'core' ? '' : parts[1], version: parts[2], resource: parts[3] } : null;
    fill(this.nav,
      VIEWS.map(([letter, label, to]) => item(label, address(to), parts.join('/') === to.join('/'), letter)),
      SECTIONS.map(([title, kinds]) => [h('h2', null, title), kinds.map((kind) => item(kind.label, toKind(kind), here === `${kind.group}/${kind.resource}`, kind.letter))]),
      h('h2', null, 'Other kinds'), other ? item(plainKind(other), toKind(other), true) : null,
      h('a', { class: 'item', href: '#/', on: { click: (event) => { event.preventDefault(); this.jump(); } } }, 'Any kind …', h('kbd', { 'aria-hidden': 'true' }, ':')));
  }

  followNames() {
    follow(collection(NAMESPACES), {}, (reflector) => {
      this.names = [...reflector.items.values()].map((i) => i.meta.name).sort();
      this.drawSpaces();
    });
  }

  keys() {
    keys.onKey('/', () => { if (!this.search.disabled) this.search.select(); this.search.focus(); });
    keys.onKey('?', help);
    keys.onKey(':', () => this.jump());
    keys.onKey('jump', () => this.jump());
    const step = (by) => () => {
      const tabs = [...this.main.querySelectorAll('.tabs a')];
      const at = tabs.findIndex((t) => t.getAttribute('aria-current') === 'page');
      if (tabs.length) tabs[(at + by + tabs.length) % tabs.length].click();
    };
    keys.onKey(']', step(1));
    keys.onKey('[', step(-1));
    for (const key of ['ArrowDown', 'j']) {
      keys.onKey(key, () => {
        const grid = this.main.querySelector('.grid');
        grid?.focus();
        grid?.dispatchEvent(new KeyboardEvent('keydown', { key }));
      });
    }
    for (const [letter, , parts] of VIEWS) keys.onGo(letter, () => go(address(parts)));
    for (const kind of SECTIONS.flatMap(([, kinds]) => kinds)) if (kind.letter) keys.onGo(kind.letter, () => go(toKind(kind)));
    keys.listen();
  }

  jump() {
    jump({ namespace: () => this.namespace, namespaces: () => this.names, setNamespace: (name) => this.setNamespace(name) });
  }

  turnTheme() {
    const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
    this.setTheme(dark ? 'light' : 'dark');
    store('theme', document.documentElement.dataset.theme);
  }

  setTheme(theme) {
    if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
    const dark = theme ? theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
    this.theme.textContent = dark ? '☀' : '☾';
    this.theme.setAttribute('aria-label', dark ? 'Light colours' : 'Dark colours');
  }
}

// Preferences; a browser that keeps none is as good.
function stored(name) {
  try {
    return localStorage.getItem(`keelson-${name}`);
  } catch {
    return null;
  }
}
function store(name, value) {
  try {
    localStorage.setItem(`keelson-${name}`, value);
  } catch { /* not kept */ }
}
