// What an object says of itself, for people: facts, containers, conditions, what it belongs to and what belongs to it.

import { h, fill, perFrame } from '../lib/dom.js';
import { getJson, pages, METADATA_LIST } from '../lib/api.js';
import { collection, ofReference, NODES, PODS, REPLICASETS, JOBS, SLICES } from '../lib/discovery.js';
import { age, moment, tone } from '../lib/format.js';
import { address, toKind, toObject } from '../lib/router.js';

export function summaryTab(of) {
  const tree = h('div', { class: 'card hidden' });
  const page = h('div', { class: 'page' });
  const element = h('div', { class: 'scrolls', tabindex: 0, role: 'region', 'aria-label': 'Summary' }, page);
  let treeOf = '';
  const draw = perFrame(() => {
    const o = of.object;
    try {
      fill(page, h('div', { class: 'columns' },
        card('Facts', facts(of, o)), tree, containers(o), conditions(o), ports(o),
        labels('Labels', o.metadata.labels), labels('Annotations', o.metadata.annotations)));
    } catch (error) {
      // Custom kinds may mean anything by these names.
      fill(page, h('div', { class: 'notice' }, `It isn't of the form that is shown here (${error.message}): its YAML has all of it.`));
    }
  });
  return {
    element,
    changed(object) {
      draw();
      const key = `${object.metadata.uid} ${object.metadata.generation} ${object.status?.replicas} ${object.status?.readyReplicas}`;
      if (key !== treeOf) family(of, object, tree);
      treeOf = key;
    },
  };
}

function card(title, ...body) {
  return h('section', { class: 'card' }, h('header', null, h('h2', null, title)), h('div', { class: 'body' }, body));
}

function list(pairs) {
  return h('dl', { class: 'facts' }, pairs.filter(([, value]) => value !== undefined && value !== null && value !== '').map(([name, value]) => [h('dt', null, name), h('dd', null, value)]));
}

function facts({ kind }, { metadata, spec = {}, status = {}, type }) {
  const node = spec.nodeName;
  const selector = spec.selector && (spec.selector.matchLabels ?? (kind.resource === 'services' ? spec.selector : null));
  const selected = selector && Object.entries(selector).map(([k, v]) => `${k}=${v}`).join(',');
  const replicas = spec.replicas === undefined ? null : `${status.readyReplicas ?? 0} ready of ${spec.replicas} wanted`;
  return list([
    ['Created', h('span', { title: metadata.creationTimestamp }, `${moment(metadata.creationTimestamp)} (${age(metadata.creationTimestamp)} ago)`)],
    ['Going since', metadata.deletionTimestamp && `${age(metadata.deletionTimestamp)} (finalizers: ${metadata.finalizers?.join(', ') || 'none'})`],
    ['Phase', status.phase], ['Reason', status.reason], ['Message', status.message],
    ['Node', node && h('a', { href: toObject(NODES, '', node) }, node)],
    ['Address', status.podIP ?? spec.clusterIP], ['Host address', status.hostIP], ['Quality of service', status.qosClass],
    ['Service account', spec.serviceAccountName], ['Priority', spec.priorityClassName],
    ['Replicas', replicas], ['Strategy', spec.strategy?.type ?? spec.updateStrategy?.type], ['Paused', spec.paused ? 'yes' : null],
    ['Type', type ?? spec.type], ['Schedule', spec.schedule], ['Class', spec.storageClassName ?? spec.ingressClassName],
    ['Volume', spec.volumeName], ['Capacity', kind.resource === 'nodes' ? capacity(status) : status.capacity?.storage],
    ['Version', status.nodeInfo?.kubeletVersion], ['System', status.nodeInfo?.osImage], ['Kernel', status.nodeInfo?.kernelVersion],
    ['Pods', kind.resource === 'nodes' ? h('a', { href: toKind(PODS, { ns: '-', f: `spec.nodeName=${metadata.name}` }) }, 'its pods') : selected && h('a', { href: toKind(PODS, { ns: metadata.namespace, l: selected }) }, selected)],
    ['Taints', spec.taints?.map((t) => `${t.key}${t.value ? `=${t.value}` : ''}:${t.effect}`).join(', ')],
    ['Finalizers', metadata.finalizers?.join(', ')], ['uid', h('code', null, metadata.uid)],
  ]);
}

function capacity({ allocatable = {} }) {
  return ['cpu', 'memory', 'pods'].map((name) => `${name} ${allocatable[name]}`).join(', ');
}

function containers({ spec, status }) {
  const template = spec?.containers ? spec : spec?.template?.spec ?? spec?.jobTemplate?.spec?.template?.spec;
  if (!template?.containers) return null;
  const states = [...(status?.initContainerStatuses ?? []), ...(status?.containerStatuses ?? []), ...(status?.ephemeralContainerStatuses ?? [])];
  const all = [...(template.initContainers ?? []).map((c) => [c, 'init']), ...template.containers.map((c) => [c, '']), ...(template.ephemeralContainers ?? []).map((c) => [c, 'debug'])];
  const hasState = states.length > 0;
  const row = ([container, sort]) => {
    const state = states.find((s) => s.name === container.name);
    const [said, why] = told(state);
    return h('tr', null,
      h('td', null, container.name, sort ? h('span', { class: 'muted' }, ` ${sort}`) : null),
      hasState ? h('td', null, h('span', { class: tone(said) }, said), why ? h('div', { class: 'muted' }, why) : null) : null,
      hasState ? h('td', { class: 'tight num' }, state ? state.restartCount : '') : null,
      h('td', { class: 'mono' }, container.image), h('td', { class: 'tight' }, wants(container)));
  };
  return h('section', { class: 'card wide' }, h('header', null, h('h2', null, 'Containers')), h('div', { class: 'body' }, h('table', { class: 'small' },
    h('thead', null, h('tr', null, ['Name', ...(hasState ? ['State', 'Restarts'] : []), 'Image', 'Requests · limits'].map((t) => h('th', { scope: 'col' }, t)))),
    h('tbody', null, all.map(row)))));
}

function told(state) {
  if (!state) return ['', ''];
  const { running, waiting, terminated } = state.state ?? {};
  const before = state.lastState?.terminated;
  const ended = before ? `before: ${before.reason ?? 'ended'}, exit code ${before.exitCode}` : '';
  if (running) return [state.ready ? 'Ready' : 'Running', ended || `since ${age(running.startedAt)}`];
  if (waiting) return [waiting.reason ?? 'Waiting', [waiting.message, ended].filter(Boolean).join('; ')];
  if (terminated) return [terminated.reason ?? 'Terminated', `exit code ${terminated.exitCode}${terminated.message ? `: ${terminated.message}` : ''}`];
  return ['', ''];
}

function wants({ resources = {} }) {
  const shown = (of) => Object.entries(of ?? {}).map(([k, v]) => `${k} ${v}`).join(', ') || '–';
  return resources.requests || resources.limits ? `${shown(resources.requests)} · ${shown(resources.limits)}` : '–';
}

function conditions({ status }) {
  const all = status?.conditions;
  if (!Array.isArray(all) || !all.length) return null;
  // Of these False is what one wants.
  const isBad = ({ type, status: is }) => (/Pressure|Unavailable|Failure|Failed|Terminating|Deletion/.test(type) ? is === 'True' : is === 'False');
  return h('section', { class: 'card wide' }, h('header', null, h('h2', null, 'Conditions')), h('div', { class: 'body' }, h('table', { class: 'small' },
    h('thead', null, h('tr', null, ['Condition', 'Is', 'Since', 'Reason'].map((t) => h('th', { scope: 'col' }, t)))),
    h('tbody', null, all.map((c) => h('tr', null,
      h('td', { class: 'tight' }, c.type), h('td', { class: `tight ${isBad(c) ? 'bad' : ''}` }, c.status), h('td', { class: 'tight num' }, age(c.lastTransitionTime)),
      h('td', null, c.reason ?? '', c.message ? h('div', { class: 'muted' }, c.message) : null)))))));
}

function ports({ spec, metadata }) {
  if (!Array.isArray(spec?.ports) || !spec.clusterIP) return null;
  return card('Ports', h('table', { class: 'small' }, h('tbody', null, spec.ports.map((p) => h('tr', null,
    h('td', null, p.name ?? ''), h('td', { class: 'num' }, `${p.port}/${p.protocol ?? 'TCP'} → ${p.targetPort ?? p.port}${p.nodePort ? `, on nodes ${p.nodePort}` : ''}`))))),
    h('p', null, h('a', { href: toKind(SLICES, { ns: metadata.namespace, l: `kubernetes.io/service-name=${metadata.name}` }) }, 'Endpoints'), ' · ', h('a', { href: address(['topology'], { ns: metadata.namespace, by: 'services' }) }, 'Topology')));
}

function labels(title, all) {
  const entries = Object.entries(all ?? {}).filter(([name]) => name !== 'kubectl.kubernetes.io/last-applied-configuration');
  return entries.length ? card(title, h('div', { class: 'labels' }, entries.map(([name, value]) => h('span', { class: 'tag' }, `${name}=${value}`)))) : null;
}

// Owners above, and what is owned below: pods, replica sets and jobs of the namespace.
async function family(of, object, into) {
  const { kind, namespace } = of;
  const above = await ancestors(object, namespace, 4);
  const below = namespace ? await descendants(namespace) : new Map();
  const draw = (node, seen) => {
    const own = (below.get(node.uid) ?? []).filter((child) => !seen.has(child.uid));
    return h('li', null, h('div', null, link(node)), own.length ? h('ul', null, own.slice(0, 50).map((child) => draw(child, new Set([...seen, child.uid]))), own.length > 50 ? h('li', { class: 'muted' }, `and ${own.length - 50} more`) : null) : null);
  };
  const self = { kind, namespace, name: object.metadata.name, uid: object.metadata.uid, isSelf: true };
  let tree = draw(self, new Set([self.uid]));
  into.classList.toggle('hidden', !above.length && !tree.querySelector('ul'));
  for (const owner of above) tree = h('li', null, h('div', null, link(owner)), h('ul', null, tree));
  return fill(into, h('header', null, h('h2', null, 'Owners and owned')), h('div', { class: 'body' }, h('ul', { class: 'tree' }, tree)));
}

function link({ kind, namespace, name, isSelf }) {
  const said = [h('span', { class: 'muted' }, kind.kind), isSelf ? h('strong', null, name) : h('a', { href: toObject(kind, kind.namespaced ? namespace : '', name) }, name)];
  return said;
}

async function ancestors(object, namespace, most) {
  const all = [];
  let next = object;
  while (all.length < most) {
    const owner = next.metadata.ownerReferences?.find((o) => o.controller) ?? next.metadata.ownerReferences?.[0];
    const kind = owner && (await ofReference(owner.apiVersion, owner.kind).catch(() => null));
    if (!kind) break;
    all.push({ kind, namespace, name: owner.name, uid: owner.uid });
    const path = `${collection(kind, namespace)}/${encodeURIComponent(owner.name)}`;
    next = await getJson(path).catch(() => null);
    if (!next) break;
  }
  return all;
}

async function descendants(namespace) {
  const byOwner = new Map();
  await Promise.all([PODS, REPLICASETS, JOBS].map((kind) => pages(collection(kind, namespace), { accept: METADATA_LIST }, ({ items }) => {
    for (const { metadata } of items) {
      for (const owner of metadata.ownerReferences ?? []) {
        if (!byOwner.has(owner.uid)) byOwner.set(owner.uid, []);
        byOwner.get(owner.uid).push({ kind, namespace, name: metadata.name, uid: metadata.uid });
      }
    }
  }).catch(() => {})));
  return byOwner;
}
