// An object as a document: read, changed, tried on the server without effect, compared, and only then saved.

import { h, fill } from '../lib/dom.js';
import { getText, send, YAML_TYPE, missing } from '../lib/api.js';
import { one } from '../lib/discovery.js';
import { drawDiff } from '../lib/diff.js';
import { code, withoutManagedFields, withoutSecrets } from '../lib/yaml.js';
import { tell } from '../parts/dialog.js';

export function editTab({ kind, namespace, name }) {
  const path = one(kind, namespace, name);
  const isSecret = kind.group === '' && kind.resource === 'secrets';
  const bar = h('div', { class: 'toolbar' });
  const says = h('div', { role: 'status' });
  const body = h('div', { class: 'view' });
  const element = h('div', { class: 'scrolls', tabindex: 0, role: 'region', 'aria-label': 'YAML' }, h('div', { class: 'page' }, bar, says, body));
  let text = '';
  let base = '';
  let mode = 'read';
  let revealed = !isSecret;
  let managed = false;

  const button = (label, call, more = {}) => h('button', { ...more, on: { click: call } }, label);
  const say = (kindOf, ...words) => fill(says, words.length ? h('div', { class: `notice ${kindOf}` }, words) : null);
  const load = async () => { text = await getText(path, { accept: YAML_TYPE }); };
  const shown = () => {
    const whole = managed ? text : withoutManagedFields(text);
    return revealed ? whole : withoutSecrets(whole);
  };

  function read() {
    mode = 'read';
    fill(bar,
      button('Edit', edit, { class: 'primary', disabled: !kind.verbs.includes('update') }),
      isSecret ? button(revealed ? 'Hide values' : 'Show values', () => { revealed = !revealed; read(); }) : null,
      h('label', { class: 'check' }, h('input', { type: 'checkbox', checked: managed, on: { change: (e) => { managed = e.target.checked; read(); } } }), 'Managed fields'),
      h('span', { class: 'grow' }), button('Copy', () => navigator.clipboard.writeText(shown()).then(() => tell('Copied.'), () => tell('The browser doesn\'t allow it.'))));
    fill(body, code(shown(), `${name} as YAML`));
  }

  async function edit() {
    revealed = true;
    say('');
    await load().catch((error) => say('bad', error.message));
    base = withoutManagedFields(text);
    write(base);
  }

  function write(content) {
    mode = 'write';
    const area = h('textarea', { class: 'editor', 'aria-label': `${name} as YAML`, spellcheck: 'false', 'data-keys': 'own', value: content });
    area.addEventListener('keydown', (event) => {
      if (event.key === 'Tab' && !event.shiftKey) {
        event.preventDefault();
        area.setRangeText('  ', area.selectionStart, area.selectionEnd, 'end');
      } else if (event.key === 'Escape') bar.querySelector('button')?.focus();
    });
    fill(bar, button('Try and compare', () => compare(area.value), { class: 'primary' }), button('Cancel', () => { say(''); read(); }), h('span', { class: 'muted' }, 'Nothing is saved yet. Esc leaves the text.'));
    fill(body, area);
    area.focus();
  }

  // What the server would make of it, against what is there now.
  async function compare(wanted) {
    mode = 'compare';
    say('', );
    try {
      const [now, then] = await Promise.all([
        getText(path, { accept: YAML_TYPE }),
        send('PUT', path, wanted, { type: YAML_TYPE, accept: YAML_TYPE, query: { dryRun: 'All', fieldValidation: 'Strict' } }),
      ]);
      const difference = drawDiff(withoutServers(now), withoutServers(then), 'What would change');
      if (!difference) {
        say('', 'The server would change nothing.');
        return write(wanted);
      }
      fill(bar, button('Save', () => save(wanted), { class: 'primary' }), button('Back to the text', () => { say(''); write(wanted); }), h('span', { class: 'muted' }, 'The server tried it without effect; this is what would change.'));
      say('');
      fill(body, difference);
      return bar.querySelector('button').focus();
    } catch (error) {
      return refused(error, wanted);
    }
  }

  async function save(wanted) {
    try {
      await send('PUT', path, wanted, { type: YAML_TYPE, accept: YAML_TYPE, query: { fieldValidation: 'Strict' } });
      await load();
      read();
      say('good', 'Saved.');
    } catch (error) {
      await refused(error, wanted);
    }
  }

  // Somebody was faster: show what they did, and let what was typed be put on top of it.
  async function refused(error, wanted) {
    write(wanted);
    if (error.code !== 409) return say('bad', error.message, ' ', missing(error));
    await load().catch(() => {});
    const newest = withoutManagedFields(text);
    const theirs = drawDiff(withoutServers(base), withoutServers(newest), 'What others changed');
    const revision = /^ {2}resourceVersion: .*$/m;
    say('warn', h('p', null, 'Somebody changed it since you began. '),
      button('Put mine on top of it', () => { base = newest; write(wanted.replace(revision, revision.exec(newest)?.[0] ?? '')); say(''); }), ' ',
      button('Begin anew with theirs', () => { base = newest; write(newest); say(''); }), theirs);
    return undefined;
  }

  return {
    element,
    async changed() {
      if (mode !== 'read') return;
      try {
        await load();
        if (mode === 'read') read();
      } catch (error) {
        say('bad', error.message, ' ', missing(error));
      }
    },
  };
}

// Without what the server sets at each write.
function withoutServers(text) {
  return withoutManagedFields(text).split('\n').filter((line) => !/^ {2}(resourceVersion|generation): /.test(line)).join('\n');
}
