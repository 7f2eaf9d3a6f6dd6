// Questions before something happens, and short messages after.

import { h, id } from '../lib/dom.js';

// A dialog with these children; `close()` is given to `make`. The browser keeps the focus within it and gives it back.
export function show(label, make, { kind = '' } = {}) {
  const dialog = h('dialog', { class: kind, 'aria-label': label });
  const close = () => {
    dialog.close();
    dialog.remove();
  };
  dialog.append(...[make(close)].flat().filter(Boolean));
  dialog.addEventListener('cancel', (event) => {
    event.preventDefault();
    close();
  });
  dialog.addEventListener('click', (event) => event.target === dialog && close());
  document.body.append(dialog);
  dialog.showModal();
  return close;
}

// Asks; with `word` the user has to type it first. `act` may fail: then it is said, and asked again.
export function ask({ title, says, does, word, danger, field, act }) {
  show(title, (close) => {
    const problem = h('p', { class: 'notice bad hidden', role: 'alert' });
    const typed = id('typed');
    const input = word || field ? h('input', { id: typed, autocomplete: 'off', spellcheck: 'false', value: field?.value ?? '', type: field?.type ?? 'text', min: field?.min }) : null;
    const button = h('button', { class: danger ? 'danger' : 'primary', type: 'submit', disabled: Boolean(word) }, does);
    if (word) input.addEventListener('input', () => { button.disabled = input.value !== word; });
    const form = h('form', { class: 'inner', method: 'dialog', on: {
      submit: async (event) => {
        event.preventDefault();
        if (button.disabled) return;
        button.disabled = true;
        try {
          const said = await act(input?.value);
          close();
          if (said) tell(said);
        } catch (error) {
          problem.textContent = error.message;
          problem.classList.remove('hidden');
          button.disabled = false;
        }
      },
    } },
    h('h1', null, title), says ? h('p', null, says) : null,
    input ? h('label', { for: typed }, word ? ['Type ', h('code', null, word), ' to confirm'] : field.label) : null, input, problem,
    h('div', { class: 'actions' }, h('button', { type: 'button', on: { click: close } }, 'Cancel'), button));
    return form;
  });
}

let last = null;
// A message that goes by itself.
export function tell(text) {
  last?.remove();
  const note = h('div', { class: 'notice good toast', role: 'status' }, text);
  document.body.append(note);
  last = note;
  setTimeout(() => note.remove(), 6000);
}
