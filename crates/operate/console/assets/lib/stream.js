// An answer without an end, by a WebSocket of the console: first how the API answered, then the body as it comes, and if it breaks off, why.

import { Problem, setGone } from './api.js';

// `form` is 'table' or 'stream'. Calls begun(), text(piece) and ended(problem or null), the last exactly once unless closed.
export function open(form, path, { begun, text, ended }) {
  const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
  const socket = new WebSocket(`${scheme}://${location.host}/console/${form}${path}`);
  socket.binaryType = 'arraybuffer';
  const decoder = new TextDecoder();
  let problem = null;
  let started = false;
  let closed = false;
  socket.onmessage = ({ data }) => {
    if (closed) return;
    if (typeof data === 'string') {
      const status = JSON.parse(data);
      if (status.kind === 'Status') {
        problem = new Problem(status);
        if (!started) setGone(problem.isGone ? problem : null);
      } else {
        started = true;
        setGone(null);
        begun?.();
      }
    } else {
      text(decoder.decode(data, { stream: true }));
    }
  };
  socket.onclose = () => {
    if (closed) return;
    closed = true;
    if (!started && !problem) problem = new Problem({ code: 0, message: 'the console can\'t be reached' });
    ended?.(problem);
  };
  return () => {
    if (closed) return;
    closed = true;
    socket.close();
  };
}

// Cuts pieces into lines; a line longer than 8 Mi characters isn't one.
export function lines(each) {
  let rest = '';
  return (piece) => {
    rest += piece;
    const all = rest.split('\n');
    rest = all.pop();
    if (rest.length > 8 << 20) rest = '';
    for (const line of all) if (line) each(line);
  };
}
