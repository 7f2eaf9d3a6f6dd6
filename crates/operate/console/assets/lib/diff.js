// What differs between two texts, line by line (Myers), with some lines around it.

import { h } from './dom.js';

const AROUND = 3;
// Beyond this many differing lines the middle is told as replaced: finding the shortest way takes its square.
const MOST = 1500;

// [{sign: ' ' | '-' | '+', text}]
export function diff(before, after) {
  const a = before.split('\n');
  const b = after.split('\n');
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start += 1;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end += 1;
  const same = (from, to) => a.slice(from, to).map((text) => ({ sign: ' ', text }));
  const [left, right] = [a.slice(start, a.length - end), b.slice(start, b.length - end)];
  return [...same(0, start), ...middle(left, right), ...same(a.length - end, a.length)];
}

function middle(a, b) {
  const replaced = [...a.map((text) => ({ sign: '-', text })), ...b.map((text) => ({ sign: '+', text }))];
  if (!a.length || !b.length || a.length + b.length > 2 * MOST) return replaced;
  const size = a.length + b.length;
  const steps = [];
  let ends = new Int32Array(2 * size + 2);
  for (let d = 0; d <= size; d += 1) {
    steps.push(ends.slice());
    for (let k = -d; k <= d; k += 2) {
      let x = k === -d || (k !== d && ends[size + k - 1] < ends[size + k + 1]) ? ends[size + k + 1] : ends[size + k - 1] + 1;
      let y = x - k;
      while (x < a.length && y < b.length && a[x] === b[y]) {
        x += 1;
        y += 1;
      }
      ends[size + k] = x;
      if (x >= a.length && y >= b.length) return back(a, b, steps, size);
    }
    if (d > MOST) return replaced;
  }
  return replaced;
}

function back(a, b, steps, size) {
  const out = [];
  let [x, y] = [a.length, b.length];
  for (let d = steps.length - 1; d >= 0; d -= 1) {
    const ends = steps[d];
    const k = x - y;
    const from = k === -d || (k !== d && ends[size + k - 1] < ends[size + k + 1]) ? k + 1 : k - 1;
    const [fromX, fromY] = [ends[size + from], ends[size + from] - from];
    while (x > fromX && y > fromY && x > 0 && y > 0) {
      out.push({ sign: ' ', text: a[x - 1] });
      x -= 1;
      y -= 1;
    }
    if (d === 0) break;
    if (x === fromX) out.push({ sign: '+', text: b[y - 1] });
    else out.push({ sign: '-', text: a[x - 1] });
    [x, y] = [fromX, fromY];
  }
  return out.reverse();
}

export function drawDiff(before, after, label) {
  const all = diff(before.replace(/\n$/, ''), after.replace(/\n$/, ''));
  const near = all.map(() => false);
  all.forEach(({ sign }, at) => {
    if (sign !== ' ') for (let i = Math.max(0, at - AROUND); i <= Math.min(all.length - 1, at + AROUND); i += 1) near[i] = true;
  });
  const lines = [];
  let hidden = 0;
  const gap = () => {
    if (hidden) lines.push(h('span', { class: 'l gap' }, `  ${hidden === 1 ? 'one line' : `${hidden} lines`} as before`));
    hidden = 0;
  };
  all.forEach(({ sign, text }, at) => {
    if (!near[at]) {
      hidden += 1;
      return;
    }
    gap();
    lines.push(h('span', { class: `l ${{ '+': 'add', '-': 'del' }[sign] ?? ''}` }, `${sign} ${text}`));
  });
  gap();
  const changed = all.some(({ sign }) => sign !== ' ');
  return changed ? h('pre', { class: 'code', tabindex: 0, role: 'region', 'aria-label': label }, lines) : null;
}
