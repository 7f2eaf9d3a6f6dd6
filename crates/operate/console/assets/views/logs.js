// What a pod's containers write, as they write it.

import { h, fill, perFrame, later } from '../lib/dom.js';
import { missing, withQuery } from '../lib/api.js';
import { one } from '../lib/discovery.js';
import { lines, open } from '../lib/stream.js';

// So many lines are kept; the oldest go.
const MOST = 10_000;
// So many are elements at once: more can't be read anyway.
const DRAWN = 3_000;
const LONGEST = 4_000;
const TAIL = 1000;

export function logsTab({ kind, namespace, name, object }) {
  const containers = [...(object.spec.initContainers ?? []), ...object.spec.containers, ...(object.spec.ephemeralContainers ?? [])].map((c) => c.name);
  let container = object.metadata.annotations?.['kubectl.kubernetes.io/default-container'] ?? object.spec.containers[0].name;
  let previous = false;
  let paused = false;
  let wanted = '';
  let kept = [];
  let fresh = [];
  let dropped = 0;
  let close = null;
  let timer = 0;
  let newest = object;
  let waits = false;
  let lastTime = '';
  let atLast = new Set();

  const log = h('div', { class: 'log', tabindex: 0, role: 'log', 'aria-label': `Log of ${name}`, 'aria-live': 'off', 'data-first': '' });
  const says = h('span', { class: 'muted num', role: 'status' });
  const stamps = h('input', { type: 'checkbox', on: { change: () => redraw() } });
  const pause = h('button', { 'aria-pressed': 'false', on: { click: () => turn() } }, 'Pause');
  const filter = h('input', { type: 'search', placeholder: 'Filter', 'aria-label': 'Lines with', on: { input: later(() => { wanted = filter.value.toLowerCase(); redraw(); }, 120) } });
  const choose = h('select', { 'aria-label': 'Container', on: { change: () => { container = choose.value; begin(); } } }, containers.map((c) => h('option', { value: c, selected: c === container }, c)));
  const before = h('input', { type: 'checkbox', on: { change: () => { previous = before.checked; begin(); } } });
  const element = h('div', { class: 'view' },
    h('div', { class: 'strip' }, choose, filter, pause, h('label', { class: 'check' }, before, 'Container before the last restart'), h('label', { class: 'check' }, stamps, 'Times'), h('span', { class: 'grow' }), says,
      h('button', { on: { click: () => download() } }, 'Save')),
    log);

  function begin() {
    kept = [];
    dropped = 0;
    lastTime = '';
    atLast = new Set();
    fill(log);
    connect();
  }

  function connect() {
    close?.();
    clearTimeout(timer);
    waits = false;
    const query = { container, timestamps: 'true', follow: previous ? '' : 'true', previous: previous ? 'true' : '', ...(lastTime ? { sinceTime: lastTime } : { tailLines: TAIL }) };
    says.textContent = 'connecting …';
    close = open('stream', withQuery(one(kind, namespace, name, 'log'), query), {
      begun: () => { tell(); },
      text: lines(add),
      ended: (problem) => {
        if (problem) say(problem.message, missing(problem));
        if (previous) return tell(problem ? 'not all of it' : 'all of it');
        // The connection ended, or the container did: then there is more when it runs again.
        waits = !runs();
        if (!waits || problem?.isGone || problem?.reason === 'BrokeOff') timer = setTimeout(connect, problem ? 5_000 : 1_000);
        if (!problem) tell(waits ? 'the container has ended' : '');
        return undefined;
      },
    });
  }

  function runs() {
    const { status = {} } = newest;
    const all = [...(status.initContainerStatuses ?? []), ...(status.containerStatuses ?? []), ...(status.ephemeralContainerStatuses ?? [])];
    return Boolean(all.find((s) => s.name === container)?.state?.running);
  }

  function add(line) {
    const cut = line.indexOf(' ');
    const time = line.slice(0, cut);
    // A log that is taken up again begins with the second in which the last line was.
    if (time < lastTime || (time === lastTime && atLast.has(line))) return;
    if (time !== lastTime) {
      lastTime = time;
      atLast = new Set();
    }
    atLast.add(line);
    const entry = { time, text: clean(line.slice(cut + 1)) };
    kept.push(entry);
    if (kept.length > MOST + 500) dropped += kept.splice(0, kept.length - MOST).length;
    fresh.push(entry);
    if (fresh.length > DRAWN) fresh = fresh.slice(-DRAWN);
    if (!paused) draw();
  }

  const draw = perFrame(() => {
    if (paused) return;
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    log.append(...fresh.filter(fits).map(row));
    fresh = [];
    while (log.childElementCount > DRAWN) log.firstChild.remove();
    if (atEnd) log.scrollTop = log.scrollHeight;
    tell();
  });

  function redraw() {
    fresh = [];
    fill(log, kept.filter(fits).slice(-DRAWN).map(row));
    log.scrollTop = log.scrollHeight;
    tell();
  }

  const fits = (entry) => !wanted || entry.text.toLowerCase().includes(wanted);

  function row({ time, text }) {
    return h('div', null, stamps.checked ? h('time', null, time.slice(0, 23)) : null, marked(text));
  }

  function marked(text) {
    if (!wanted) return text;
    const at = text.toLowerCase().indexOf(wanted);
    return at < 0 ? text : [text.slice(0, at), h('mark', null, text.slice(at, at + wanted.length)), text.slice(at + wanted.length)];
  }

  function turn() {
    paused = !paused;
    pause.setAttribute('aria-pressed', String(paused));
    pause.textContent = paused ? 'Go on' : 'Pause';
    if (!paused) draw();
    tell();
  }

  function tell(more) {
    says.textContent = [`${kept.length.toLocaleString('en')} lines`, dropped ? `${dropped.toLocaleString('en')} older ones dropped` : '', paused ? `paused, ${fresh.length} new` : '', more].filter(Boolean).join(', ');
  }

  function say(message, more) {
    if (!kept.length) fill(log, h('div', { class: 'muted' }, message, ' ', more));
    else says.textContent = message;
  }

  function download() {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([kept.map((e) => `${e.time} ${e.text}\n`).join('')], { type: 'text/plain' }));
    link.download = `${name}-${container}.log`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  begin();
  return {
    element,
    changed(now) {
      newest = now;
      if (waits && !previous && runs()) connect();
    },
    stop() {
      close?.();
      clearTimeout(timer);
    },
  };
}

// Without colours and other commands for terminals; a line of any length costs a bounded one.
function clean(text) {
  const bare = text.replace(/\u001b\[[0-9;?]*[ -/]*[@-~]|[\u0000-\u0008\u000b-\u001f\u007f]/g, '');
  return bare.length > LONGEST ? `${bare.slice(0, LONGEST)} … (${bare.length - LONGEST} more characters)` : bare;
}
