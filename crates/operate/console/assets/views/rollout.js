// Rollouts of deployments, stateful sets and daemon sets: how far one is, which revisions there were, and back to one of them.

import { h, fill } from '../lib/dom.js';
import { getJson, getText, patch, send, missing, YAML_TYPE } from '../lib/api.js';
import { collection, one, REPLICASETS, REVISIONS } from '../lib/discovery.js';
import { age } from '../lib/format.js';
import { drawDiff } from '../lib/diff.js';
import { ask, tell } from '../parts/dialog.js';

export function isRollout(kind) {
  return kind.group === 'apps' && ['deployments', 'statefulsets', 'daemonsets'].includes(kind.resource);
}

export function rolloutActions(of, allowed) {
  const { kind, namespace, name } = of;
  const path = one(kind, namespace, name);
  const button = (label, call) => h('button', { disabled: !allowed, on: { click: call } }, label);
  const canScale = kind.subresources.includes('scale');
  if (!isRollout(kind) && !canScale) return [];
  const scale = () => ask({
    title: `Scale ${name}`, does: 'Scale', field: { label: 'Replicas', type: 'number', min: 0, value: of.object?.spec.replicas ?? 1 },
    act: async (value) => {
      const replicas = Number(value);
      if (!Number.isInteger(replicas) || replicas < 0) throw new Error('A whole number from 0 on.');
      await patch(one(kind, namespace, name, 'scale'), { spec: { replicas } });
      return `${name} is to have ${replicas} replicas.`;
    },
  });
  const restart = () => ask({
    title: `Restart ${name}?`, does: 'Restart', says: 'Its pods are replaced, as a rollout does it.',
    act: async () => {
      await patch(path, { spec: { template: { metadata: { annotations: { 'kubectl.kubernetes.io/restartedAt': new Date().toISOString() } } } } });
      return `${name} restarts.`;
    },
  });
  return [canScale ? button('Scale', scale) : null, isRollout(kind) ? button('Restart', restart) : null];
}

export function rolloutTab(of) {
  const { kind, namespace, name } = of;
  const page = h('div', { class: 'page' });
  const element = h('div', { class: 'scrolls', tabindex: 0, role: 'region', 'aria-label': 'Rollout' }, page);
  const state = h('section', { class: 'card' });
  const table = h('section', { class: 'card' });
  const changes = h('div');
  fill(page, state, table, changes);
  let seen = '';

  async function revisions(object) {
    try {
      const all = await (kind.resource === 'deployments' ? ofReplicaSets(object, namespace) : ofRevisions(object, namespace));
      fill(table, h('header', null, h('h2', null, 'Revisions')), h('div', { class: 'body' }, all.length ? h('table', { class: 'small' },
        h('thead', null, h('tr', null, ['Revision', 'Made', 'Pods', 'Images', 'Why', ''].map((t) => h('th', { scope: 'col' }, t || h('span', { class: 'sr' }, 'What can be done'))))),
        h('tbody', null, all.map((r, at) => h('tr', null,
          h('td', { class: 'tight num' }, r.revision, at === 0 ? h('span', { class: 'muted' }, ' now') : null), h('td', { class: 'tight num' }, age(r.made)), h('td', { class: 'tight num' }, r.pods ?? ''),
          h('td', { class: 'mono' }, r.images), h('td', null, r.why ?? ''),
          h('td', { class: 'tight' }, at === 0 ? null : h('button', { on: { click: () => undo(r) } }, 'Go back to it …')))))) : h('p', { class: 'muted' }, 'None are kept.')));
    } catch (error) {
      fill(table, h('div', { class: 'problem' }, error.message, ' ', missing(error)));
    }
  }

  // First what it would change, then the change.
  async function undo(revision) {
    const path = one(kind, namespace, name);
    const options = { type: revision.type, accept: YAML_TYPE };
    try {
      const [now, then] = await Promise.all([getText(path, { accept: YAML_TYPE }), send('PATCH', path, revision.patch, { ...options, query: { dryRun: 'All' } })]);
      const only = (text) => text.slice(text.indexOf('\nspec:'), text.includes('\nstatus:') ? text.indexOf('\nstatus:') : undefined);
      const difference = drawDiff(only(now), only(then), 'What would change');
      fill(changes, h('section', { class: 'card' }, h('header', null, h('h2', null, `Back to revision ${revision.revision}`), h('span', { class: 'grow' }),
        h('button', { on: { click: () => fill(changes) } }, 'Cancel'),
        h('button', { class: 'primary', disabled: !difference, on: { click: async () => {
          try {
            await send('PATCH', path, revision.patch, options);
            fill(changes);
            tell(`${name} goes back to revision ${revision.revision}.`);
          } catch (error) {
            fill(changes, h('div', { class: 'notice bad', role: 'alert' }, error.message));
          }
        } } }, 'Go back')), h('div', { class: 'body' }, difference ?? 'It is as that revision was.')));
      changes.querySelector('button.primary').focus();
    } catch (error) {
      fill(changes, h('div', { class: 'notice bad', role: 'alert' }, error.message, ' ', missing(error)));
    }
  }

  async function pause(paused) {
    try {
      await patch(one(kind, namespace, name), { spec: { paused } });
      tell(paused ? 'Changes wait until it goes on.' : 'It goes on.');
    } catch (error) {
      tell(error.message);
    }
  }

  return {
    element,
    changed(object) {
      fill(state, h('header', null, h('h2', null, 'Rollout'), h('span', { class: 'grow' }),
        kind.resource === 'deployments' ? h('button', { on: { click: () => pause(!object.spec.paused) } }, object.spec.paused ? 'Go on' : 'Pause') : null),
      h('div', { class: 'body' }, progress(kind, object)));
      const key = `${object.metadata.generation} ${object.status?.updatedReplicas ?? object.status?.updatedNumberScheduled} ${object.status?.readyReplicas}`;
      if (key !== seen) revisions(object);
      seen = key;
    },
  };
}

function progress(kind, { spec, status = {}, metadata }) {
  const isDaemon = kind.resource === 'daemonsets';
  const wanted = isDaemon ? status.desiredNumberScheduled ?? 0 : spec.replicas ?? 1;
  const updated = (isDaemon ? status.updatedNumberScheduled : status.updatedReplicas) ?? 0;
  const ready = (isDaemon ? status.numberAvailable : status.availableReplicas) ?? 0;
  const seen = (status.observedGeneration ?? 0) >= metadata.generation;
  const isDone = seen && updated >= wanted && ready >= wanted && (status.replicas ?? wanted) <= wanted;
  const stuck = status.conditions?.find((c) => c.type === 'Progressing' && c.status === 'False');
  const says = spec.paused ? 'Paused.' : stuck ? `Stuck: ${stuck.message}` : isDone ? 'Complete.' : 'Under way.';
  const part = (n) => `${wanted ? Math.min(100, (n / wanted) * 100) : 0}%`;
  const bar = h('div', { class: 'bar', role: 'img', 'aria-label': `${updated} of ${wanted} are new, ${ready} available` }, h('i', { class: isDone ? 'good' : stuck ? 'bad' : 'info' }));
  bar.firstChild.style.width = part(Math.min(updated, ready));
  return [h('p', { class: stuck ? 'bad' : isDone ? 'good' : '' }, says), h('p', { class: 'num muted' }, `${wanted} wanted, ${updated} of the newest revision, ${ready} available`), bar];
}

function images(template) {
  return (template?.spec?.containers ?? []).map((c) => c.image).join(', ');
}

async function ofReplicaSets(object, namespace) {
  const { items } = await getJson(collection(REPLICASETS, namespace), { query: { labelSelector: selectorOf(object) } });
  const revision = ({ metadata }) => Number(metadata.annotations?.['deployment.kubernetes.io/revision'] ?? 0);
  return items.filter((r) => r.metadata.ownerReferences?.some((o) => o.uid === object.metadata.uid)).sort((a, b) => revision(b) - revision(a)).map((r) => {
    const template = structuredClone(r.spec.template);
    delete template.metadata?.labels?.['pod-template-hash'];
    return {
      revision: revision(r), made: r.metadata.creationTimestamp, pods: `${r.status?.readyReplicas ?? 0}/${r.spec.replicas}`, images: images(template),
      why: r.metadata.annotations?.['kubernetes.io/change-cause'], type: 'application/json-patch+json', patch: [{ op: 'replace', path: '/spec/template', value: template }],
    };
  });
}

async function ofRevisions(object, namespace) {
  const { items } = await getJson(collection(REVISIONS, namespace), { query: { labelSelector: selectorOf(object) } });
  return items.filter((r) => r.metadata.ownerReferences?.some((o) => o.uid === object.metadata.uid)).sort((a, b) => b.revision - a.revision).map((r) => ({
    revision: r.revision, made: r.metadata.creationTimestamp, images: images(r.data?.spec?.template), why: r.metadata.annotations?.['kubernetes.io/change-cause'],
    type: 'application/strategic-merge-patch+json', patch: r.data,
  }));
}

function selectorOf({ spec }) {
  return Object.entries(spec.selector?.matchLabels ?? {}).map(([k, v]) => `${k}=${v}`).join(',');
}
