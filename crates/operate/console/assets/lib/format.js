// Values as people read them.

export function age(timestamp, now = Date.now()) {
  if (!timestamp) return '';
  const seconds = Math.max(0, Math.floor((now - Date.parse(timestamp)) / 1000));
  if (Number.isNaN(seconds)) return '';
  if (seconds < 120) return `${seconds}s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 10) return seconds % 60 ? `${minutes}m${seconds % 60}s` : `${minutes}m`;
  if (minutes < 180) return `${minutes}m`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours}h`;
  const days = Math.floor(hours / 24);
  return days < 730 ? `${days}d` : `${Math.floor(days / 365)}y`;
}

export function moment(timestamp) {
  const date = new Date(timestamp);
  return Number.isNaN(date.getTime()) ? '' : date.toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'medium' });
}

const FACTORS = { n: 1e-9, u: 1e-6, m: 1e-3, '': 1, k: 1e3, M: 1e6, G: 1e9, T: 1e12, P: 1e15, E: 1e18, Ki: 2 ** 10, Mi: 2 ** 20, Gi: 2 ** 30, Ti: 2 ** 40, Pi: 2 ** 50, Ei: 2 ** 60 };

// A quantity of the API as a number.
export function quantity(text) {
  const found = /^([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([a-zA-Z]*)$/.exec(String(text ?? '').trim());
  return found && found[2] in FACTORS ? Number(found[1]) * FACTORS[found[2]] : 0;
}

export function cores(value) {
  if (value >= 10) return value.toFixed(0);
  return value >= 1 ? value.toFixed(2) : `${Math.round(value * 1000)}m`;
}

export function bytes(value) {
  for (const [unit, size] of [['TiB', 2 ** 40], ['GiB', 2 ** 30], ['MiB', 2 ** 20], ['KiB', 2 ** 10]]) {
    if (value >= size) return `${(value / size).toFixed(value / size < 10 ? 1 : 0)} ${unit}`;
  }
  return `${Math.round(value)} B`;
}

export function count(number, word, plural = `${word}s`) {
  return `${number.toLocaleString('en')} ${number === 1 ? word : plural}`;
}

const GOOD = new Set(['Running', 'Ready', 'Active', 'Bound', 'Available', 'Healthy', 'Established', 'True']);
const IDLE = new Set(['Completed', 'Succeeded', 'Complete', 'Suspended', 'Terminated', 'Unknown', '', '<none>', 'False']);
const WAITS = new Set(['Pending', 'ContainerCreating', 'Terminating', 'PodInitializing', 'Init', 'Released', 'SchedulingGated', 'Progressing', 'NotReady', 'Warning']);

// How a status is to be taken: good, warn, bad or nothing.
export function tone(status) {
  const text = String(status ?? '');
  if (GOOD.has(text)) return 'good';
  if (IDLE.has(text)) return '';
  if (WAITS.has(text) || text.startsWith('Init:') && !/Err|Back|Crash/.test(text)) return text === 'NotReady' ? 'bad' : 'warn';
  if (text.startsWith('Ready,')) return 'warn';
  return /Err|Fail|Back|Crash|Evict|OOM|Lost|Invalid|NotReady|Unschedulable|Cannot|Deadline/i.test(text) ? 'bad' : '';
}

// `2/3` as how many of how many; null if it is nothing of the sort.
export function share(text) {
  const found = /^(\d+)\/(\d+)$/.exec(String(text ?? ''));
  return found ? [Number(found[1]), Number(found[2])] : null;
}

export function plainKind(kind) {
  return kind.group ? `${kind.resource}.${kind.group}` : kind.resource;
}
