// A small plot of one line over time.

import { h, svg } from './dom.js';
import { age } from './format.js';

const [WIDTH, HEIGHT] = [600, 120];

// `samples` are {time, value}; `limit` is drawn across if it is in reach.
export function plot(title, samples, format, limit) {
  const values = samples.map((s) => s.value);
  const now = values[values.length - 1];
  const highest = Math.max(...values, limit && limit < 2 * Math.max(...values) ? limit : 0, 1e-9) * 1.15;
  const begin = samples[0]?.time ?? 0;
  const end = Math.max(samples[samples.length - 1]?.time ?? 1, begin + 60_000);
  const x = (time) => ((time - begin) / (end - begin)) * WIDTH;
  const y = (value) => HEIGHT - (value / highest) * HEIGHT;
  const line = samples.map((s, at) => `${at ? 'L' : 'M'}${x(s.time).toFixed(1)} ${y(s.value).toFixed(1)}`).join('');
  const last = samples.length ? x(samples[samples.length - 1].time).toFixed(1) : 0;
  return h('section', { class: 'card' },
    h('header', null, h('h2', null, title), h('span', { class: 'grow' }), h('span', { class: 'num' }, samples.length ? format(now) : '–', limit ? h('span', { class: 'muted' }, ` of ${format(limit)}`) : null)),
    h('div', { class: 'body' },
      svg('svg', { class: 'plot', viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img', 'aria-label': samples.length ? `${title}: now ${format(now)}, at most ${format(Math.max(...values))}` : `${title}: nothing yet` },
        [0.25, 0.5, 0.75, 1].map((part) => svg('line', { class: 'rule', x1: 0, x2: WIDTH, y1: HEIGHT * part, y2: HEIGHT * part })),
        limit && limit <= highest ? svg('line', { class: 'limit', x1: 0, x2: WIDTH, y1: y(limit), y2: y(limit) }) : null,
        samples.length > 1 ? svg('path', { class: 'area', d: `${line}L${last} ${HEIGHT}L0 ${HEIGHT}Z` }) : null,
        samples.length > 1 ? svg('path', { class: 'line', d: line }) : null),
      h('div', { class: 'axis' }, h('span', null, samples.length > 1 ? `${age(new Date(begin).toISOString())} ago` : 'sampling while this page is open'), h('span', { class: 'num' }, samples.length ? `top ${format(highest)}` : ''))));
}
