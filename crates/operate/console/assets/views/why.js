// Why something isn't as it should be: what `keelson why` says, with the same rights.

import { h, fill, later } from '../lib/dom.js';
import { getJson, missing } from '../lib/api.js';
import { kinds } from '../lib/discovery.js';
import { plainKind } from '../lib/format.js';
import { toObject } from '../lib/router.js';

export function whyTab({ kind, namespace, name }) {
  const body = h('div', { class: 'page', 'aria-live': 'polite' }, h('p', { class: 'muted' }, 'Looking …'));
  const element = h('div', { class: 'scrolls', tabindex: 0, role: 'region', 'aria-label': 'Why' }, body);
  const path = `/console/why/${encodeURIComponent(plainKind(kind))}/${encodeURIComponent(namespace || '-')}/${encodeURIComponent(name)}`;
  let stopped = false;
  const look = async () => {
    try {
      const report = await getJson(path);
      const all = await kinds();
      if (!stopped) fill(body, draw(report, look, (object) => place(object, all, namespace)));
    } catch (error) {
      if (stopped) return;
      const none = error.reason === 'NoRules';
      fill(body, h('div', { class: none ? 'notice' : 'notice bad' }, none ? 'There are no rules for this kind. Its conditions are in the summary.' : error.message, ' ', missing(error)));
    }
  };
  // Things change in bursts; the newest state is asked once.
  const soon = later(look, 700);
  let first = true;
  return {
    element,
    changed() {
      if (first) look();
      else soon();
      first = false;
    },
    stop() { stopped = true; },
  };
}

function draw({ findings, notes, unread }, again, place) {
  const button = h('button', { on: { click: again } }, 'Look again');
  const says = findings.length ? findings.length === 1 ? 'One cause.' : `${findings.length} causes, the first to mend first.` : 'Nothing is wrong that its objects would tell.';
  return [
    h('div', { class: 'toolbar' }, h('p', { class: findings.length ? '' : 'good' }, says), h('span', { class: 'grow' }), button),
    findings.map((finding) => cause(finding, place)),
    more('Also so', notes), more('Could not be read, and isn\'t judged', unread),
  ];
}

// `pod/web-0, container app`: the object as a link, if it is of a kind that there is.
function place(object, all, namespace) {
  const found = /^([a-z]+)\/([^,\s]+)(.*)$/.exec(object);
  const kind = found && all.find((k) => k.kind.toLowerCase() === found[1]);
  return kind ? [h('a', { href: toObject(kind, kind.namespaced ? namespace : '', found[2]) }, `${found[1]}/${found[2]}`), found[3]] : object;
}

function cause({ cause: id, confidence, object, says, evidence, fix }, where) {
  return h('article', { class: `cause ${confidence}` },
    h('h2', null, confidence === 'likely' ? `Probably: ${says}` : says.charAt(0).toUpperCase() + says.slice(1)),
    h('div', { class: 'of' }, where(object), ' · ', h('code', null, id)),
    h('dl', { class: 'facts' },
      evidence.length ? [h('dt', null, 'Because'), h('dd', null, h('ul', null, evidence.map((e) => h('li', null, e))))] : null,
      fix ? [h('dt', null, 'Fix'), h('dd', { class: 'fix' }, fix)] : null));
}

function more(title, all) {
  return all.length ? h('section', { class: 'card' }, h('header', null, h('h2', null, title)), h('div', { class: 'body' }, h('ul', { class: 'tree' }, all.map((t) => h('li', null, t))))) : null;
}
