// Which kinds there are, custom ones too, and how each is asked for.

import { getJson } from './api.js';

const AGGREGATED = 'application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList, application/json';
const FRESH = 30_000;

let known = null;
let at = 0;
let asking = null;

// {group, version, resource, kind, namespaced, verbs, short, subresources}; of a group's versions the preferred one comes first.
export async function kinds(fresh = false) {
  if (known && !(fresh && Date.now() - at > FRESH)) return known;
  asking ??= Promise.all(['/api', '/apis'].map((path) => getJson(path, { accept: AGGREGATED })))
    .then((lists) => {
      known = lists.flatMap((list) => (list.items ?? []).flatMap((group) => (group.versions ?? []).flatMap((version) => (version.resources ?? []).map((r) => ({
        group: group.metadata.name ?? '', version: version.version, resource: r.resource, kind: r.responseKind?.kind ?? r.resource,
        namespaced: r.scope === 'Namespaced', verbs: r.verbs ?? [], short: r.shortNames ?? [],
        subresources: (r.subresources ?? []).map((s) => s.subresource),
      })))));
      at = Date.now();
      return known;
    })
    .finally(() => { asking = null; });
  return asking;
}

export async function find(group, version, resource) {
  const same = (k) => k.group === group && k.resource === resource && (!version || k.version === version);
  return (await kinds()).find(same) ?? (await kinds(true)).find(same);
}

// By `apiVersion` and `kind`, as references name it.
export async function ofReference(apiVersion, kind) {
  const [group, version] = apiVersion?.includes('/') ? apiVersion.split('/') : ['', apiVersion];
  const all = await kinds();
  return all.find((k) => k.group === group && k.version === version && k.kind === kind) ?? all.find((k) => k.kind === kind && (!apiVersion || k.group === group));
}

// One row a kind: versions that aren't preferred are left out.
export async function listable() {
  const seen = new Set();
  return (await kinds(true)).filter((k) => {
    const key = `${k.group}/${k.resource}`;
    if (seen.has(key) || !k.verbs.includes('list')) return false;
    seen.add(key);
    return true;
  });
}

export function collection(kind, namespace) {
  const root = kind.group ? `/apis/${kind.group}/${kind.version}` : `/api/${kind.version}`;
  return kind.namespaced && namespace ? `${root}/namespaces/${encodeURIComponent(namespace)}/${kind.resource}` : `${root}/${kind.resource}`;
}

export function one(kind, namespace, name, subresource) {
  const path = `${collection(kind, namespace)}/${encodeURIComponent(name)}`;
  return subresource ? `${path}/${subresource}` : path;
}

const fixed = (group, version, resource, kind, namespaced = true) => ({ group, version, resource, kind, namespaced });
// Those that views of their own speak of.
export const PODS = fixed('', 'v1', 'pods', 'Pod');
export const NODES = fixed('', 'v1', 'nodes', 'Node', false);
export const EVENTS = fixed('', 'v1', 'events', 'Event');
export const SERVICES = fixed('', 'v1', 'services', 'Service');
export const NAMESPACES = fixed('', 'v1', 'namespaces', 'Namespace', false);
export const SLICES = fixed('discovery.k8s.io', 'v1', 'endpointslices', 'EndpointSlice');
export const DEPLOYMENTS = fixed('apps', 'v1', 'deployments', 'Deployment');
export const REPLICASETS = fixed('apps', 'v1', 'replicasets', 'ReplicaSet');
export const STATEFULSETS = fixed('apps', 'v1', 'statefulsets', 'StatefulSet');
export const DAEMONSETS = fixed('apps', 'v1', 'daemonsets', 'DaemonSet');
export const REVISIONS = fixed('apps', 'v1', 'controllerrevisions', 'ControllerRevision');
export const JOBS = fixed('batch', 'v1', 'jobs', 'Job');
export const CLAIMS = fixed('', 'v1', 'persistentvolumeclaims', 'PersistentVolumeClaim');
