// Documents in YAML, which the API writes and reads itself. Here lines are coloured, shortened and hidden, never understood.

import { h } from './dom.js';

// Without what nobody wrote: managed fields are the server's notes.
export function withoutManagedFields(text) {
  const out = [];
  let within = false;
  for (const line of text.split('\n')) {
    if (line === '  managedFields:') within = true;
    else if (within && !/^ {2}-|^ {3}/.test(line)) within = false;
    if (!within) out.push(line);
  }
  return out.join('\n');
}

// A secret's values as dots, but for the length; also what kubectl keeps of them in an annotation.
export function withoutSecrets(text) {
  let within = false;
  let depth = 0;
  return text.split('\n').map((line) => {
    const top = /^(data|stringData):/.exec(line);
    if (top) within = true;
    else if (/^\S/.test(line)) within = false;
    const note = /^( *)kubectl\.kubernetes\.io\/last-applied-configuration: /.exec(line);
    if (note) {
      depth = note[1].length + 1;
      return `${note[1]}kubectl.kubernetes.io/last-applied-configuration: ••••••`;
    }
    if (depth) {
      if (line.length && line.search(/\S/) >= depth) return null;
      depth = 0;
    }
    if (!within || top) return line;
    const pair = /^( {2}[^ :][^:]*:)/.exec(line);
    return pair ? `${pair[1]} ••••••` : null;
  }).filter((line) => line !== null).join('\n');
}

// A line with its key, strings, numbers and comments marked.
export function colour(line) {
  if (/^\s*#/.test(line)) return [h('span', { class: 'comment' }, line)];
  const found = /^(\s*(?:- )*)([^\s'"{[&*!|>%@`#-][^:#]*|"[^"]*"|'[^']*')(:)(\s.*|)$/.exec(line);
  if (found) return [found[1], h('span', { class: 'key' }, found[2]), found[3], value(found[4])];
  const item = /^(\s*(?:- )+)(.*)$/.exec(line);
  return item ? [item[1], value(item[2])] : [value(line)];
}

function value(text) {
  const bare = text.trim();
  if (/^(-?\d+(\.\d+)?|true|false|null)$/.test(bare)) return h('span', { class: 'number' }, text);
  if (!bare || /^[|>[{]/.test(bare)) return text;
  return h('span', { class: 'string' }, text);
}

export function code(text, label) {
  return h('pre', { class: 'code', tabindex: 0, role: 'region', 'aria-label': label }, text.replace(/\n$/, '').split('\n').map((line) => h('span', { class: 'l' }, colour(line))));
}
