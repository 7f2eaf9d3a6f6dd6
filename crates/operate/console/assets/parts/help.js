// What keys do.

import { h } from '../lib/dom.js';
import { show } from './dialog.js';

export const SHORTCUTS = [
  ['Search in the table', ['/']], ['Go to any kind or namespace', [':', 'Ctrl K']],
  ['Rows up and down', ['↑', '↓', 'j', 'k']], ['Open the row', ['Enter']],
  ['Next and previous tab of an object', [']', '[']], ['This list', ['?']],
  ['Overview', ['g o']], ['Topology', ['g t']],
  ['Events', ['g e']], ['Resource use', ['g u']],
  ['Pods', ['g p']], ['Deployments', ['g d']],
  ['Stateful sets', ['g a']], ['Jobs', ['g j']],
  ['Services', ['g s']], ['Ingresses', ['g i']],
  ['Config maps', ['g c']], ['Secrets', ['g x']],
  ['Claims', ['g v']], ['Nodes', ['g n']],
];

export function help() {
  show('Keys', (close) => h('div', { class: 'inner' },
    h('h1', null, 'Keys'),
    h('dl', { class: 'shortcuts' }, SHORTCUTS.map(([what, keys]) => h('div', null, h('dt', null, what), h('dd', null, keys.map((k) => [h('kbd', null, k), ' ']))))),
    h('div', { class: 'actions' }, h('button', { class: 'primary', on: { click: close } }, 'Close'))));
}
