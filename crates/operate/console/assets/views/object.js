// One object: what it is called, what can be done to it, and its tabs.

import { h, fill } from '../lib/dom.js';
import { may, send, missing } from '../lib/api.js';
import { collection, find, one } from '../lib/discovery.js';
import { plainKind, share, tone } from '../lib/format.js';
import { follow } from '../lib/reflector.js';
import { go, toKind, toObject } from '../lib/router.js';
import { ask } from '../parts/dialog.js';
import { summaryTab } from './summary.js';
import { editTab } from './edit.js';
import { objectEventsTab } from './events.js';
import { whyTab } from './why.js';
import { logsTab } from './logs.js';
import { execTab } from './exec.js';
import { rolloutTab, isRollout, rolloutActions } from './rollout.js';
import { usageTab } from './usage.js';

// Each tab is `(of) => {element, changed?(object), stop?()}`; `of` has kind, namespace, name and the newest object.
const TABS = [
  ['', 'Summary', summaryTab, () => true],
  ['yaml', 'YAML', editTab, () => true],
  ['events', 'Events', objectEventsTab, () => true],
  ['why', 'Why', whyTab, () => true],
  ['rollout', 'Rollout', rolloutTab, isRollout],
  ['logs', 'Logs', logsTab, (kind) => isPod(kind)],
  ['shell', 'Shell', execTab, (kind) => isPod(kind)],
  ['usage', 'Use', usageTab, (kind) => isPod(kind) || (kind.group === '' && kind.resource === 'nodes')],
];

function isPod(kind) {
  return kind.group === '' && kind.resource === 'pods';
}

export async function objectView(shell, { parts }) {
  const [, group, version, resource, space, name, tab = ''] = parts;
  const kind = await find(group === 'core' ? '' : group, version, resource);
  if (!kind || !name) throw new Error(`The API has no ${resource} (${group}/${version}).`);
  const entry = TABS.find(([key, , , fits]) => key === tab && fits(kind)) ?? TABS[0];
  return new ObjectView(kind, space === '-' ? '' : space, name, entry);
}

class ObjectView {
  constructor(kind, namespace, name, [tab, , makeTab]) {
    Object.assign(this, { kind, namespace, name, title: `${name} · ${kind.kind}`, object: null });
    this.status = h('span');
    this.actions = h('div', { class: 'toolbar' });
    this.says = h('div');
    this.body = h('div', { class: 'view' });
    const link = ([key, label]) => h('a', { href: toObject(kind, namespace, name, key), 'aria-current': key === tab ? 'page' : null }, label);
    this.element = h('div', { class: 'view' },
      h('div', { class: 'heading' },
        h('div', null,
          h('div', { class: 'crumbs' }, h('a', { href: toKind(kind, { ns: namespace }) }, kind.kind), kind.group ? ` ${plainKind(kind)}` : '', namespace ? ` in ${namespace}` : ''),
          h('div', { class: 'named' }, h('h1', null, name), this.status)),
        h('span', { class: 'grow' }), this.actions),
      h('nav', { class: 'tabs', 'aria-label': `Parts of ${name}` }, TABS.filter(([, , , fits]) => fits(kind)).map(link)),
      this.says, this.body);
    this.makeTab = makeTab;
    const query = { fieldSelector: `metadata.name=${name}` };
    this.held = follow(collection(kind, namespace), { table: false, query }, (reflector) => this.changed(reflector));
    this.table = follow(collection(kind, namespace), { query }, (reflector) => this.drawStatus(reflector));
    this.allow();
  }

  changed(reflector) {
    const found = [...reflector.items.values()][0];
    if (reflector.state === 'failed') {
      fill(this.says, h('div', { class: 'problem', role: 'alert' }, h('p', null, reflector.problem.message), h('p', { class: 'muted' }, missing(reflector.problem))));
    } else if (!found && reflector.state === 'live') {
      fill(this.says, h('div', { class: 'problem', role: 'alert' }, h('p', null, this.object ? `${this.name} has been deleted. What is shown is what it was.` : `There is no ${this.kind.kind} ${this.name}${this.namespace ? ` in namespace ${this.namespace}` : ''}.`)));
    } else fill(this.says);
    if (!found) return;
    this.object = found;
    if (this.tab) this.tab.changed?.(found);
    else {
      this.tab = this.makeTab(this);
      fill(this.body, this.tab.element);
      this.tab.changed?.(found);
    }
  }

  drawStatus(reflector) {
    const row = [...reflector.items.values()][0];
    const at = reflector.columns.findIndex((c) => /^(status|phase|ready|available)$/i.test(c.name));
    const text = row?.meta.deletionTimestamp ? 'Terminating' : at >= 0 ? String(row?.cells[at] ?? '') : '';
    const status = reflector.columns.findIndex((c) => c.name === 'Status');
    const shown = row && status >= 0 && !row.meta.deletionTimestamp ? String(row.cells[status]) : text;
    fill(this.status, shown ? h('span', { class: `tag ${toneOf(shown)}` }, shown) : null);
  }

  // What one may do has a button; what one may not has none that works.
  async allow() {
    const { kind, namespace, name } = this;
    const [mayDelete, mayPatch] = await Promise.all([may('delete', kind.group, kind.resource, namespace, '', name), may('patch', kind.group, kind.resource, namespace, '', name)]);
    const no = 'You don\'t have the right to do this.';
    fill(this.actions,
      rolloutActions(this, mayPatch),
      kind.verbs.includes('delete') ? h('button', { class: 'danger', disabled: !mayDelete, title: mayDelete ? null : no, on: { click: () => this.delete() } }, 'Delete') : null);
  }

  delete() {
    const { kind, namespace, name } = this;
    const great = ['namespaces', 'nodes', 'persistentvolumes', 'persistentvolumeclaims', 'customresourcedefinitions'].includes(kind.resource);
    const uid = this.object?.meta.uid;
    ask({
      title: `Delete ${kind.kind} ${name}?`, does: 'Delete', danger: true, word: great ? name : null,
      says: kind.resource === 'namespaces' ? 'Everything in it is deleted with it.' : kind.resource === 'customresourcedefinitions' ? 'All objects of this kind are deleted with it.' : 'What it owns is deleted with it. Controllers may make it anew.',
      act: async () => {
        // What one saw is what one deletes, not another of the same name.
        const options = { apiVersion: 'v1', kind: 'DeleteOptions', propagationPolicy: 'Background', preconditions: uid ? { uid } : undefined };
        await send('DELETE', one(kind, namespace, name), options);
        go(toKind(kind, { ns: namespace }));
        return `${name} is being deleted.`;
      },
    });
  }

  stop() {
    this.held.stop();
    this.table.stop();
    this.tab?.stop?.();
  }
}


function toneOf(shown) {
  const parts = share(shown);
  if (!parts) return tone(shown);
  return parts[0] < parts[1] ? 'warn' : 'good';
}
