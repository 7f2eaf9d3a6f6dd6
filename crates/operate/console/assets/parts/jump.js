// Go anywhere by typing: kinds by any of their names, and namespaces.

import { h, fill, id } from '../lib/dom.js';
import { listable } from '../lib/discovery.js';
import { go, toKind, address } from '../lib/router.js';
import { plainKind } from '../lib/format.js';
import { show } from './dialog.js';

const PLACES = [['Overview', []], ['Topology', ['topology']], ['Events', ['events']], ['Resource use', ['usage']]];
const MOST = 60;

export function jump({ namespace, namespaces, setNamespace }) {
  show('Go to', (close) => {
    const list = id('jump');
    const items = h('ul', { id: list, role: 'listbox', 'aria-label': 'Places' });
    const input = h('input', {
      role: 'combobox', 'aria-expanded': 'true', 'aria-controls': list, 'aria-label': 'Go to a kind, a namespace or a view',
      placeholder: 'Kind, namespace or view …', autocomplete: 'off', spellcheck: 'false',
    });
    let all = PLACES.map(([name, parts]) => ({ name, hint: 'view', words: name.toLowerCase(), to: () => go(address(parts)) }));
    let found = [];
    let at = 0;
    const draw = () => {
      const typed = input.value.trim().toLowerCase();
      found = all.map((place) => [score(place, typed), place]).filter(([s]) => s > 0).sort((a, b) => b[0] - a[0]).slice(0, MOST).map(([, p]) => p);
      at = Math.max(0, Math.min(at, found.length - 1));
      fill(items, found.map((place, index) => h('li', {
        role: 'option', id: `${list}-${index}`, 'aria-selected': index === at ? 'true' : 'false', on: { click: () => choose(place) },
      }, h('span', null, place.name), h('span', { class: 'muted' }, place.hint))));
      input.setAttribute('aria-activedescendant', found.length ? `${list}-${at}` : '');
      items.children[at]?.scrollIntoView({ block: 'nearest' });
    };
    const choose = (place) => {
      close();
      place.to();
    };
    input.addEventListener('input', () => { at = 0; draw(); });
    input.addEventListener('keydown', (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (step) {
        event.preventDefault();
        at += step;
        draw();
      } else if (event.key === 'Enter' && found[at]) {
        event.preventDefault();
        choose(found[at]);
      }
    });
    listable().then((kinds) => {
      all = all.concat(
        kinds.map((k) => ({
          name: plainKind(k), hint: k.kind, words: [k.resource, k.kind.toLowerCase(), ...k.short, k.group].join(' '), short: k.short,
          to: () => go(toKind(k, { ns: k.namespaced ? namespace() : '' })),
        })),
        namespaces().map((name) => ({ name, hint: 'namespace', words: name, to: () => setNamespace(name) })));
      draw();
    }, () => draw());
    draw();
    return [input, items];
  }, { kind: 'jump' });
}

function score(place, typed) {
  if (!typed) return 1;
  if (place.name === typed || place.short?.includes(typed)) return 5;
  if (place.words.startsWith(typed)) return 4;
  if (place.words.includes(` ${typed}`)) return 3;
  return place.words.includes(typed) ? 2 : 0;
}
