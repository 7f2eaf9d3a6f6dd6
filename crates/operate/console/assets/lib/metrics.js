// What nodes and pods use, asked now and then while somebody looks; the last while of it is kept.

import { getJson, Problem } from './api.js';
import { quantity } from './format.js';

const EVERY = 15_000;
// An hour.
const MOST = 240;

// {time, cpu, memory} by name; `usage` sums a pod's containers.
export class Samples extends EventTarget {
  constructor(path, { list = true } = {}) {
    super();
    Object.assign(this, { path, list, series: new Map(), problem: null, users: 0 });
  }

  start() {
    this.users += 1;
    if (this.users === 1) this.ask();
    return this;
  }

  stop() {
    this.users -= 1;
    if (this.users === 0) clearTimeout(this.timer);
  }

  async ask() {
    clearTimeout(this.timer);
    try {
      const answer = await getJson(this.path);
      this.problem = null;
      const time = Date.now();
      const seen = new Set();
      for (const item of this.list ? answer.items : [answer]) {
        const key = item.metadata.namespace ? `${item.metadata.namespace}/${item.metadata.name}` : item.metadata.name;
        seen.add(key);
        const all = this.series.get(key) ?? [];
        const used = (item.containers ?? [{ usage: item.usage }]).map((c) => c.usage ?? {});
        const sample = { time, at: item.timestamp, cpu: sum(used, 'cpu'), memory: sum(used, 'memory') };
        all.push(sample);
        if (all.length > MOST) all.shift();
        this.series.set(key, all);
      }
      for (const key of this.series.keys()) if (!seen.has(key)) this.series.delete(key);
    } catch (error) {
      // Whatever it was, it is asked again.
      this.problem = error instanceof Problem ? error : new Problem({ code: 500, message: `what the API answered can't be read: ${error.message}` });
    }
    this.dispatchEvent(new Event('change'));
    if (this.users > 0) this.timer = setTimeout(() => this.ask(), EVERY);
  }

  // All of one moment together.
  total() {
    const moments = new Map();
    for (const all of this.series.values()) {
      for (const { time, cpu, memory } of all) {
        const at = moments.get(time) ?? { time, cpu: 0, memory: 0 };
        at.cpu += cpu;
        at.memory += memory;
        moments.set(time, at);
      }
    }
    return [...moments.values()].sort((a, b) => a.time - b.time);
  }
}

function sum(all, name) {
  return all.reduce((total, usage) => total + quantity(usage[name]), 0);
}

export const METRICS = '/apis/metrics.k8s.io/v1beta1';
// Kept for as long as the page is open: what was sampled is there when one comes back.
export const NODE_USE = new Samples(`${METRICS}/nodes`);
const pods = new Map();
export function podUse(namespace) {
  if (!pods.has(namespace)) {
    if (pods.size > 4) pods.delete(pods.keys().next().value);
    pods.set(namespace, new Samples(namespace ? `${METRICS}/namespaces/${encodeURIComponent(namespace)}/pods` : `${METRICS}/pods`));
  }
  return pods.get(namespace);
}

export function saysNone(problem) {
  return problem.code === 404 || problem.code === 503 ? 'The cluster has no resource metrics (metrics.k8s.io).' : problem.message;
}
