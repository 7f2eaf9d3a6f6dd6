// Addresses of views: everything that is shown is in the address, so that a link leads to the same.
//
// #/                                        overview
// #/r/GROUP/VERSION/RESOURCE?ns=&q=&l=&f=   a kind
// #/o/GROUP/VERSION/RESOURCE/NAMESPACE/NAME/TAB   an object; the core group is `core`, no namespace is `-`
// #/events, #/usage, #/topology

export function current() {
  const [path, query] = location.hash.replace(/^#/, '').split('?');
  const parts = (path || '/').split('/').filter(Boolean).map(decode);
  return { parts, query: Object.fromEntries(new URLSearchParams(query ?? '')) };
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

export function address(parts, query) {
  const path = parts.map(encodeURIComponent).join('/');
  const all = new URLSearchParams(Object.entries(query ?? {}).filter(([, value]) => value));
  const text = all.toString();
  return `#/${path}${text ? `?${text}` : ''}`;
}

export function toKind(kind, query) {
  return address(['r', kind.group || 'core', kind.version, kind.resource], query);
}

export function toObject(kind, namespace, name, tab) {
  const parts = ['o', kind.group || 'core', kind.version, kind.resource, namespace || '-', name];
  return address(tab ? [...parts, tab] : parts);
}

export function go(to) {
  location.hash = to.replace(/^#/, '');
}

// Changes what the address asks for, without a step in the history.
export function refine(changes) {
  const { parts, query } = current();
  const to = address(parts, { ...query, ...changes });
  if (to === location.hash) return;
  history.replaceState(null, '', to);
  window.dispatchEvent(new CustomEvent('refined'));
}
