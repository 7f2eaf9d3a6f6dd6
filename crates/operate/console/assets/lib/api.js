// Requests to the API, and their failures as sentences.

export const JSON_TYPE = 'application/json';
export const YAML_TYPE = 'application/yaml';
export const TABLE_TYPE = 'application/json;as=Table;g=meta.k8s.io;v=v1, application/json';
export const METADATA_LIST = 'application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1';
const PATIENCE = 60_000;
export const PAGE = 500;

// Tells when the API goes and when it is back.
export const link = new EventTarget();
let gone = null;
export function setGone(problem) {
  const text = problem ? problem.message : null;
  if (text === gone) return;
  gone = text;
  link.dispatchEvent(new CustomEvent('change', { detail: text }));
}

// What went wrong: `code` as in HTTP (0: not even the console answered), `message` a sentence.
export class Problem extends Error {
  constructor(status) {
    super(sentence(status));
    this.code = status.code ?? 0;
    this.reason = status.reason ?? '';
    this.details = status.details ?? {};
    this.said = status.message ?? '';
  }
  get isGone() { return this.code === 0 || this.reason === 'Unreachable'; }
  get isExpired() { return this.code === 410 || this.reason === 'Expired' || this.reason === 'Gone'; }
  get isForbidden() { return this.code === 403 || this.code === 401; }
}

function sentence(status) {
  const said = status.message || `the API answered ${status.code}`;
  if (status.code === 401 && status.reason !== 'Refused') return `The API doesn't know who you are any more: ${said}. Is the kubeconfig's certificate or token expired?`;
  return said.charAt(0).toUpperCase() + said.slice(1);
}

// Which permission is missing, out of RBAC's own words.
export function missing(problem) {
  const found = /cannot (\w+) resource "([^"]+)" in API group "([^"]*)"(?: in the namespace "([^"]+)")?/.exec(problem.said);
  if (!found) return null;
  const [, verb, resource, group, namespace] = found;
  return `You need the right to ${verb} ${resource}${group ? `.${group}` : ''}${namespace ? ` in namespace ${namespace}` : ' in the whole cluster'}.`;
}

export function withQuery(path, query) {
  const all = new URLSearchParams();
  for (const [name, value] of Object.entries(query ?? {})) {
    if (value !== undefined && value !== null && value !== '') all.set(name, value);
  }
  const text = all.toString();
  return text ? `${path}?${text}` : path;
}

async function request(method, path, { query, body, type, accept = JSON_TYPE, signal } = {}) {
  const headers = { accept };
  if (body !== undefined) headers['content-type'] = type ?? JSON_TYPE;
  const timer = AbortSignal.timeout(PATIENCE);
  let answer;
  try {
    answer = await fetch(withQuery(path, query), {
      method, headers, body, cache: 'no-store', redirect: 'error',
      signal: signal ? AbortSignal.any([signal, timer]) : timer,
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    const problem = new Problem({ code: 0, message: 'the console itself doesn\'t answer: does `keelson console` still run?' });
    setGone(problem);
    throw problem;
  }
  if (answer.ok) {
    setGone(null);
    return answer;
  }
  const text = await answer.text();
  let status = { code: answer.status, message: text.slice(0, 500) };
  try {
    const parsed = JSON.parse(text);
    if (parsed.kind === 'Status') status = { ...parsed, code: parsed.code || answer.status };
  } catch { /* not JSON: its text is what there is */ }
  const problem = new Problem(status);
  setGone(problem.isGone ? problem : null);
  throw problem;
}

export async function getJson(path, options) {
  return (await request('GET', path, options)).json();
}
export async function getText(path, options) {
  return (await request('GET', path, options)).text();
}
export async function send(method, path, object, options = {}) {
  const body = object === undefined ? undefined : typeof object === 'string' ? object : JSON.stringify(object);
  const answer = await request(method, path, { ...options, body });
  return options.accept === YAML_TYPE ? answer.text() : answer.json();
}
export function patch(path, object, options = {}) {
  return send('PATCH', path, object, { type: 'application/merge-patch+json', ...options });
}

// All pages of a list; `page` gets each as it comes. Gives the list's revision.
export async function pages(path, { query, accept, signal }, page) {
  let next = '';
  let revision = '';
  do {
    const list = await getJson(path, { query: { ...query, limit: PAGE, continue: next }, accept, signal });
    revision = list.metadata?.resourceVersion ?? '';
    next = list.metadata?.continue ?? '';
    page(list);
  } while (next);
  return revision;
}

// Whether one may do something, as the API says.
export async function may(verb, group, resource, namespace, subresource = '', name = '') {
  const body = {
    apiVersion: 'authorization.k8s.io/v1', kind: 'SelfSubjectAccessReview',
    spec: { resourceAttributes: { verb, group, resource, subresource, namespace: namespace ?? '', name } },
  };
  try {
    const answer = await send('POST', '/apis/authorization.k8s.io/v1/selfsubjectaccessreviews', body);
    return answer.status?.allowed === true;
  } catch {
    return true; // Not known: trying says it.
  }
}
