// Keys that count wherever one is, except where one types.

const plain = new Map();
const after = new Map();
let waiting = 0;

export function onKey(key, call) { plain.set(key, call); }
export function onGo(letter, call) { after.set(letter, call); }

export function isTyping(target) {
  return target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName) || target.closest?.('[data-keys="own"]');
}

export function listen() {
  document.addEventListener('keydown', (event) => {
    if (event.defaultPrevented || event.altKey || document.querySelector('dialog[open]')) return;
    if ((event.ctrlKey || event.metaKey) && event.key === 'k') {
      event.preventDefault();
      plain.get('jump')?.();
      return;
    }
    if (event.ctrlKey || event.metaKey || isTyping(event.target)) return;
    if (waiting > Date.now()) {
      waiting = 0;
      const call = after.get(event.key);
      if (call) {
        event.preventDefault();
        call();
        return;
      }
    }
    if (event.key === 'g') {
      waiting = Date.now() + 1500;
      return;
    }
    const call = plain.get(event.key);
    if (call) {
      event.preventDefault();
      call();
    }
  });
}
