// A shell in a container: the API's own WebSocket, and a terminal.

import { h, fill, perFrame } from '../lib/dom.js';
import { may, withQuery } from '../lib/api.js';
import { one } from '../lib/discovery.js';
import { Terminal } from '../lib/terminal.js';

const PROTOCOL = 'v5.channel.k8s.io';
const [STDIN, STDOUT, STDERR, STATUS, RESIZE] = [0, 1, 2, 3, 4];
const NAMED = ['#1c2126', '#f0716b', '#4cc38a', '#e5b455', '#6cb2f7', '#d392e6', '#5fc3dc', '#c8cdd3', '#7d8792', '#ff9592', '#7fdcae', '#f5cf7d', '#9acbff', '#e6b4f5', '#8fdcf0', '#ffffff'];
const COMMAND = ['sh', '-c', 'command -v bash >/dev/null && exec bash || exec sh'];

export function execTab({ kind, namespace, name, object }) {
  const running = object.spec.containers.map((c) => c.name).concat((object.spec.ephemeralContainers ?? []).map((c) => c.name));
  const choose = h('select', { 'aria-label': 'Container' }, running.map((c) => h('option', { value: c }, c)));
  const command = h('input', { 'aria-label': 'Command; empty is a shell', placeholder: 'Command (a shell)', spellcheck: 'false', autocomplete: 'off' });
  const button = h('button', { class: 'primary', 'data-first': '', on: { click: () => (socket ? end() : begin()) } }, 'Connect');
  const says = h('span', { class: 'muted', role: 'status' }, 'Ctrl+Shift+E leaves the terminal.');
  const screen = h('div', { class: 'terminal', tabindex: 0, role: 'textbox', 'aria-multiline': 'true', 'aria-label': `Terminal in ${name}`, 'data-keys': 'own' });
  const element = h('div', { class: 'view' }, h('div', { class: 'strip' }, choose, command, button, says), screen);
  command.addEventListener('keydown', (event) => event.key === 'Enter' && !socket && begin());
  let socket = null;
  let terminal = new Terminal(80, 24);
  const encoder = new TextEncoder();

  function begin() {
    measure();
    terminal = new Terminal(terminal.columns, terminal.rows);
    terminal.reply = type;
    const words = command.value.trim() ? ['sh', '-c', command.value.trim()] : COMMAND;
    const path = withQuery(one(kind, namespace, name, 'exec'), { container: choose.value, stdin: 'true', stdout: 'true', tty: 'true' }) + words.map((w) => `&command=${encodeURIComponent(w)}`).join('');
    const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
    socket = new WebSocket(`${scheme}://${location.host}${path}`, PROTOCOL);
    socket.binaryType = 'arraybuffer';
    let opened = false;
    let ended = '';
    says.textContent = 'connecting …';
    button.textContent = 'Disconnect';
    socket.onopen = () => {
      opened = true;
      says.textContent = 'connected; Ctrl+Shift+E leaves the terminal';
      size();
      screen.focus();
    };
    socket.onmessage = ({ data }) => {
      const bytes = new Uint8Array(data);
      if (bytes[0] === STDOUT || bytes[0] === STDERR) {
        terminal.write(bytes.subarray(1));
        draw();
      } else if (bytes[0] === STATUS) ended = outcome(new TextDecoder().decode(bytes.subarray(1)));
    };
    const mine = socket;
    socket.onclose = async () => {
      if (socket !== mine) return;
      socket = null;
      button.textContent = 'Connect';
      says.textContent = opened ? ended || 'the connection ended' : await whyNot();
    };
  }

  // A browser doesn't say why a WebSocket was refused.
  async function whyNot() {
    if (!(await may('get', '', 'pods', namespace, 'exec', name)) && !(await may('create', '', 'pods', namespace, 'exec', name))) {
      return `You need the right to create pods/exec in namespace ${namespace}.`;
    }
    return 'It could not be connected: does the container run, and is its node there?';
  }

  function end() {
    const old = socket;
    socket = null;
    old?.close();
    button.textContent = 'Connect';
    says.textContent = 'disconnected';
  }

  function frame(channel, bytes) {
    if (socket?.readyState !== WebSocket.OPEN) return;
    const message = new Uint8Array(bytes.length + 1);
    message[0] = channel;
    message.set(bytes, 1);
    socket.send(message);
  }
  function type(text) { frame(STDIN, encoder.encode(text)); }
  function size() { frame(RESIZE, encoder.encode(JSON.stringify({ Width: terminal.columns, Height: terminal.rows }))); }

  function measure() {
    const probe = h('span', null, 'M'.repeat(20));
    screen.append(probe);
    const width = probe.getBoundingClientRect().width / 20 || 8;
    probe.remove();
    const columns = Math.max(20, Math.min(400, Math.floor((screen.clientWidth - 30) / width)));
    const rows = Math.max(5, Math.min(200, Math.floor((screen.clientHeight - 20) / 17)));
    if (columns === terminal.columns && rows === terminal.rows) return;
    terminal.resize(columns, rows);
    size();
    draw();
  }

  const draw = perFrame(() => {
    const atEnd = screen.scrollHeight - screen.scrollTop - screen.clientHeight < 40;
    const lines = terminal.screen === terminal.main ? [...terminal.past, ...terminal.screen] : terminal.screen;
    const cursor = lines.length - terminal.rows + terminal.y;
    fill(screen, lines.map((line, y) => h('div', { class: 'r' }, runs(line, y === cursor && !terminal.hidden ? terminal.x : -1))));
    if (atEnd) screen.scrollTop = screen.scrollHeight;
  });

  screen.addEventListener('keydown', (event) => {
    if (event.ctrlKey && event.shiftKey && event.key.toLowerCase() === 'e') {
      event.preventDefault();
      button.focus();
      return;
    }
    if (!socket || event.metaKey || (event.ctrlKey && event.shiftKey)) return;
    const text = keyText(event, terminal.appKeys);
    if (text === null) return;
    event.preventDefault();
    event.stopPropagation();
    type(text);
  });
  screen.addEventListener('paste', (event) => {
    event.preventDefault();
    const text = event.clipboardData.getData('text').replace(/\r?\n/g, '\r');
    type(terminal.bracketed ? `\u001b[200~${text}\u001b[201~` : text);
  });
  const sizes = new ResizeObserver(() => measure());
  sizes.observe(screen);
  return {
    element,
    stop() {
      sizes.disconnect();
      end();
    },
  };
}

// Cells of the same look as one element.
function runs(line, cursor) {
  const out = [];
  let text = '';
  let look = null;
  const flush = () => {
    if (text) out.push(span(text, look));
    text = '';
  };
  line.forEach((cell, x) => {
    const key = x === cursor ? 'cursor' : `${cell.front}|${cell.back}|${cell.bold}|${cell.dim}|${cell.under}|${cell.turned}`;
    if (key !== look?.key) {
      flush();
      look = { key, cell, isCursor: x === cursor };
    }
    text += cell.c;
  });
  flush();
  return out;
}

function span(text, { cell, isCursor }) {
  const names = [cell.bold && 'b', cell.under && 'u', cell.dim && 'd', isCursor && 'cursor'].filter(Boolean).join(' ');
  const front = colour(cell.turned ? cell.back ?? 0 : cell.front);
  const back = colour(cell.turned ? cell.front ?? 7 : cell.back);
  if (!names && !front && !back) return text;
  const element = h('span', { class: names || null }, text);
  if (!isCursor && front) element.style.color = front;
  if (!isCursor && back) element.style.backgroundColor = back;
  return element;
}

function colour(value) {
  if (value === undefined || typeof value === 'string') return value ?? '';
  if (value < 16) return NAMED[value];
  if (value >= 232) return `rgb(${Array(3).fill(8 + (value - 232) * 10).join(' ')})`;
  const part = (n) => (n ? 55 + n * 40 : 0);
  return `rgb(${part(Math.floor((value - 16) / 36))} ${part(Math.floor((value - 16) / 6) % 6)} ${part((value - 16) % 6)})`;
}

const KEYS = { Enter: '\r', Backspace: '\u007f', Tab: '\t', Escape: '\u001b', Delete: '\u001b[3~', Insert: '\u001b[2~', PageUp: '\u001b[5~', PageDown: '\u001b[6~' };
const MOVES = { ArrowUp: 'A', ArrowDown: 'B', ArrowRight: 'C', ArrowLeft: 'D', Home: 'H', End: 'F' };

function keyText(event, appKeys) {
  if (event.key === 'Tab' && event.shiftKey) return '\u001b[Z';
  if (event.key in KEYS) return KEYS[event.key];
  if (event.key in MOVES) {
    const more = 1 + (event.shiftKey ? 1 : 0) + (event.altKey ? 2 : 0) + (event.ctrlKey ? 4 : 0);
    if (more > 1) return `\u001b[1;${more}${MOVES[event.key]}`;
    return (appKeys ? '\u001bO' : '\u001b[') + MOVES[event.key];
  }
  if (event.key.length !== 1) return null;
  if (event.ctrlKey) {
    const code = event.key.toUpperCase().charCodeAt(0);
    return code >= 0x40 && code <= 0x5f ? String.fromCharCode(code & 31) : event.key === ' ' ? '\u0000' : null;
  }
  return event.altKey ? `\u001b${event.key}` : event.key;
}

function outcome(text) {
  try {
    const status = JSON.parse(text);
    if (status.status === 'Success') return 'it ended well';
    const code = status.details?.causes?.find((c) => c.reason === 'ExitCode')?.message;
    return code ? `it ended with exit code ${code}` : status.message;
  } catch {
    return text;
  }
}
