// What is held, part by part.

const SHOP = '/apis/apps/v1/namespaces/shop';

export const parts = { pure, views, hostile, keyboard, live, edit, secrets, rollout, logs, shell, rights, small, outage };

async function pod(lab, app = 'web') {
  const { body } = await lab.api('GET', `/api/v1/namespaces/shop/pods?labelSelector=app%3D${app}`);
  return body.items.find((p) => !p.metadata.deletionTimestamp).metadata.name;
}

async function views(lab) {
  const name = await pod(lab);
  const all = {
    overview: ['#/', '.card.figure .big'], pods: ['#/r/core/v1/pods', 'tr.row'], nodes: ['#/r/core/v1/nodes', 'tr.row'],
    definitions: ['#/r/apiextensions.k8s.io/v1/customresourcedefinitions', 'tr.row'], empty: ['#/r/example.com/v1/widgets', '.empty'],
    pod: [`#/o/core/v1/pods/shop/${name}`, '.tree'], deployment: ['#/o/apps/v1/deployments/shop/web', '.tree'], service: ['#/o/core/v1/services/shop/web', '.facts'],
    node: [`#/o/core/v1/nodes/-/${process.env.CLUSTER}`, '.facts'], yaml: ['#/o/apps/v1/deployments/shop/web/yaml', '.code .l'],
    'object-events': [`#/o/core/v1/pods/shop/${name}/events`, '.rows li'], rollout: ['#/o/apps/v1/deployments/shop/web/rollout', 'table.small td'],
    logs: [`#/o/core/v1/pods/shop/${name}/logs`, '.log div'], shell: [`#/o/core/v1/pods/shop/${name}/shell`, '.terminal'], 'pod-use': [`#/o/core/v1/pods/shop/${name}/usage`, '.card'],
    events: ['#/events', '.timeline circle'], usage: ['#/usage', '.plot'], topology: ['#/topology', '.map svg a'], services: ['#/topology?by=services', '.map svg a'], owners: ['#/topology?by=owners', '.map svg a'],
  };
  for (const [view, [hash, there]] of Object.entries(all)) {
    await lab.go(hash);
    await lab.page.waitForSelector(there).catch(async () => { throw new Error(`${view} shows no ${there}: ${await lab.text()}`); });
    await lab.page.waitForTimeout(300);
    await lab.accessible(view);
  }
  const broken = await pod(lab, 'broken');
  await lab.go(`#/o/core/v1/pods/shop/${broken}/why`);
  await lab.until('why says that the image isn\'t there', () => /image/i.test(document.querySelector('.cause h2')?.textContent ?? ''));
  await lab.accessible('why');
  await lab.go('#/nowhere');
  await lab.until('an address that leads nowhere says so', () => document.body.innerText.includes('There is no such view.'));
}

// Names can't be hostile, the API sees to that; all other texts can.
async function hostile(lab) {
  const name = await pod(lab);
  for (const hash of ['#/events', '#/', '#/r/core/v1/configmaps?ns=shop', '#/o/core/v1/configmaps/shop/settings', '#/o/core/v1/configmaps/shop/settings/yaml',
    '#/o/apps/v1/deployments/shop/web', '#/o/apps/v1/deployments/shop/web/yaml', `#/o/core/v1/pods/shop/${name}/logs`, '#/r/core/v1/pods?q=<img src=x onerror=window.pwned=1>',
    '#/o/core/v1/pods/shop/<script>window.pwned=1<%2Fscript>', '#/topology?by=<b>x</b>']) {
    await lab.go(hash);
    await lab.page.waitForTimeout(600);
    await lab.quiet();
  }
  const page = await lab.context.newPage();
  await page.goto(`${lab.origin}/api/v1/namespaces/shop/configmaps/settings`);
  lab.check((await page.evaluate(() => window.pwned)) === undefined && (await page.evaluate(() => window.origin)) === 'null', 'what the API answers is a page of nobody\'s origin');
  await page.close();
  const refused = await lab.page.evaluate(async () => { try { document.body.innerHTML = '<b>x</b>'; return false; } catch { return true; } });
  lab.check(refused, 'the page itself can\'t make a page of a text (Trusted Types)');
  // The browser told of this one, as it should; of any other it must not.
  await lab.page.waitForTimeout(300);
  const told = lab.errors.findIndex((error) => error.includes('TrustedHTML'));
  lab.check(told >= 0, 'and the browser tells of the attempt');
  lab.errors.splice(told, 1);
}

async function keyboard(lab) {
  const { page } = lab;
  const press = async (...keys) => { for (const key of keys) await page.keyboard.press(key); };
  await lab.go('#/');
  await page.waitForSelector('.card.figure');
  await press('?');
  await lab.until('? lists the keys', () => document.querySelector('dialog[open]')?.innerText.includes('Deployments'));
  await lab.accessible('keys');
  await press('Escape');
  await press('g', 'p');
  await lab.until('g p leads to pods', () => location.hash.includes('/pods') && document.querySelectorAll('tr.row').length > 3);
  await press('/');
  await page.keyboard.type('db-0');
  await lab.until('/ searches', () => document.querySelectorAll('tr.row').length === 1 && location.hash.includes('q=db-0'));
  await press('Enter', 'ArrowDown', 'Enter');
  await lab.until('arrows choose and Enter opens', () => location.hash.endsWith('/pods/shop/db-0'));
  await page.waitForSelector('.tabs a');
  await press(']');
  await lab.until('] is the next tab', () => location.hash.endsWith('/yaml'));
  await press('[');
  await press(':');
  await page.keyboard.type('wg');
  await lab.until(': finds kinds by short names, custom ones too', () => document.querySelector('dialog li[aria-selected="true"]')?.innerText.includes('widgets.example.com'));
  await lab.accessible('jump');
  await press('Enter');
  await lab.until('and leads there', () => location.hash.includes('/widgets'));
  await press('g', 'n');
  await lab.until('g n leads to nodes', () => document.querySelector('h1')?.innerText === 'Node' && document.querySelector('tr.row'));
  for (const way of ['Tab', 'Shift+Tab', 'Shift+Tab']) {
    await press(way);
    lab.check(await page.evaluate(() => {
      const at = document.activeElement;
      return at !== document.body && (getComputedStyle(at).outlineStyle !== 'none' || (at.matches('.grid') && getComputedStyle(at.querySelector('th')).boxShadow !== 'none'));
    }), `where the focus is can be seen (${await page.evaluate(() => document.activeElement.textContent.slice(0, 20) || document.activeElement.tagName)})`);
  }
}

async function live(lab) {
  await lab.go('#/r/example.com/v1/widgets?ns=shop');
  await lab.until('there are none', () => document.querySelector('.empty')?.innerText.includes('No widgets'));
  const widget = (name, colour) => ({ apiVersion: 'example.com/v1', kind: 'Widget', metadata: { name }, spec: { colour } });
  await lab.api('POST', '/apis/example.com/v1/namespaces/shop/widgets', widget('a', 'red'));
  await lab.api('POST', '/apis/example.com/v1/namespaces/shop/widgets', widget('b', 'blue'));
  await lab.until('what is made shows, with the columns of its definition', () => document.querySelectorAll('tr.row').length === 2 && document.querySelector('main').innerText.includes('blue'));
  await lab.api('PATCH', '/apis/example.com/v1/namespaces/shop/widgets/a', { spec: { colour: 'green' } }, 'application/merge-patch+json');
  await lab.until('what changes changes', () => document.querySelector('main').innerText.includes('green'));
  await lab.page.click('th button:has-text("Colour")');
  await lab.until('it can be sorted', () => document.querySelector('tr.row').innerText.includes('blue') && location.hash.includes('sort=Colour'));
  await lab.go('#/o/example.com/v1/widgets/shop/a');
  await lab.page.click('button.danger');
  await lab.accessible('delete');
  await lab.page.click('dialog button[type=submit]');
  await lab.until('what is deleted goes', () => location.hash.includes('/r/example.com') && document.querySelectorAll('tr.row').length === 1);
  // A watch that is too old: the list is read anew.
  let lists = 0;
  let broken = 0;
  await lab.page.route(/namespaces\/many\/configmaps/, (route) => { lists += 1; return route.continue(); });
  await lab.page.routeWebSocket(/console\/table.*many\/configmaps/, (socket) => {
    if (broken++ > 0) return void socket.connectToServer();
    socket.send('{"code":200}');
    socket.send(Buffer.from('{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old resource version"}}\n'));
    return socket.close();
  });
  await lab.go('#/r/core/v1/configmaps?ns=many');
  await lab.page.waitForTimeout(1500);
  await lab.api('POST', '/api/v1/namespaces/many/configmaps', { metadata: { name: 'after' } });
  await lab.until('after 410 what comes later shows', () => document.querySelector('main').innerText.includes('after'));
  lab.check(lists >= 2 && broken >= 2, `it was listed again and watched again (${lists}, ${broken})`);
}

async function edit(lab) {
  const { page } = lab;
  const path = '/api/v1/namespaces/shop/configmaps/settings';
  const change = async (from, to) => {
    const area = page.locator('textarea.editor');
    const text = await area.inputValue();
    if (!text.includes(from)) throw new Error(`no ${from} in ${text}`);
    await area.fill(text.replace(from, to));
  };
  await lab.go('#/o/core/v1/configmaps/shop/settings/yaml');
  await page.click('button:has-text("Edit")');
  await page.waitForSelector('textarea.editor');
  lab.check(!(await page.locator('textarea.editor').inputValue()).includes('managedFields'), 'managed fields are left out');
  await change('colour: red', 'colour: [red');
  await page.click('button:has-text("Try and compare")');
  await lab.until('what is no YAML is refused by the server, and nothing is lost', () => document.querySelector('.notice.bad') && document.querySelector('textarea').value.includes('[red'));
  await change('colour: [red', 'colour: blue');
  await page.click('button:has-text("Try and compare")');
  await page.waitForSelector('.code .add');
  const shown = await lab.text();
  lab.check(/-\s+colour: red/.test(shown) && /\+\s+colour: blue/.test(shown), 'the difference shows');
  await lab.accessible('compare');
  lab.check((await lab.api('GET', path)).body.data.colour === 'red', 'nothing is saved before one says so');
  await lab.api('PATCH', path, { data: { shape: 'round' } }, 'application/merge-patch+json');
  await page.click('button:has-text("Save")');
  await lab.until('who was faster is told', () => document.querySelector('.notice.warn')?.innerText.includes('shape: round'));
  await lab.accessible('conflict');
  await page.click('button:has-text("Put mine on top")');
  await page.click('button:has-text("Try and compare")');
  await page.waitForSelector('.code .add');
  await page.click('button:has-text("Save")');
  await lab.until('it is saved', () => document.querySelector('.notice.good')?.innerText.includes('Saved'));
  lab.check((await lab.api('GET', path)).body.data.colour === 'blue', 'as it was typed');
  const fields = (await lab.api('GET', path)).body.metadata.managedFields.map((f) => f.manager);
  lab.check(fields.includes('keelson-console'), `under the console's name (${fields})`);
}

async function secrets(lab) {
  await lab.go('#/o/core/v1/secrets/shop/sealed/yaml');
  await lab.page.waitForSelector('.code .l');
  const plain = 'Hj4sRd8NcB2gFu';
  const coded = Buffer.from(plain).toString('base64');
  const html = () => lab.page.content();
  lab.check(!(await html()).includes(coded) && (await lab.text()).includes('password: ••••••') && !(await html()).includes(plain), 'a secret\'s values are hidden');
  await lab.accessible('secret');
  await lab.page.click('button:has-text("Show values")');
  lab.check((await html()).includes(coded), 'until one asks');
  await lab.go('#/o/core/v1/secrets/shop/sealed');
  await lab.page.waitForSelector('.facts');
  lab.check(!(await html()).includes(coded) && !(await html()).includes(plain), 'the summary has none');
}

async function rollout(lab) {
  const { page } = lab;
  await lab.go('#/o/apps/v1/deployments/shop/web/rollout');
  await page.waitForSelector('table.small td');
  await page.click('button:has-text("Scale")');
  await page.fill('dialog input', '2');
  await page.click('dialog button[type=submit]');
  await lab.until('scaling', () => /2 wanted, 2 of the newest revision, 2 available/.test(document.querySelector('main').innerText), null, 60_000);
  await page.click('button:has-text("Restart")');
  await page.click('dialog button[type=submit]');
  await lab.until('a restart is a revision', () => document.querySelectorAll('table.small tbody tr').length === 2 && document.querySelector('main').innerText.includes('Complete.'), null, 60_000);
  await page.click('button:has-text("Go back to it")');
  await lab.until('going back shows what would change', () => [...document.querySelectorAll('.code .del')].some((l) => l.textContent.includes('restartedAt')));
  await lab.accessible('undo');
  await page.click('.card button.primary');
  await lab.until('and does it', () => document.querySelectorAll('table.small tbody tr').length === 2 && document.querySelector('table.small td').innerText.startsWith('3'), null, 60_000);
  const { body } = await lab.api('GET', `${SHOP}/deployments/web`);
  lab.check(!body.spec.template.metadata.annotations?.['kubectl.kubernetes.io/restartedAt'], 'the template is what it was');
  await page.click('main button:has-text("Pause")');
  await lab.until('pausing', () => document.querySelector('main').innerText.includes('Paused.'));
  await page.click('main button:has-text("Go on")');
  await lab.until('and going on', () => document.querySelector('main').innerText.includes('Complete.'), null, 60_000);
  // Stateful sets keep their revisions as patches.
  await lab.api('PATCH', `${SHOP}/statefulsets/db`, { spec: { template: { metadata: { annotations: { turn: 'second' } } } } }, 'application/merge-patch+json');
  await lab.go('#/o/apps/v1/statefulsets/shop/db/rollout');
  await lab.until('revisions of a stateful set', () => document.querySelectorAll('table.small tbody tr').length === 2);
  await page.click('button:has-text("Go back to it")');
  await lab.until('with what would change', () => [...document.querySelectorAll('.code .del')].some((l) => l.textContent.includes('second')));
  await page.click('.card button.primary');
  await page.waitForTimeout(1000);
  lab.check(!(await lab.api('GET', `${SHOP}/statefulsets/db`)).body.spec.template.metadata.annotations?.turn, 'and back');
}

async function logs(lab) {
  const { page } = lab;
  await lab.go(`#/o/core/v1/pods/shop/${await pod(lab)}/logs`);
  await page.waitForSelector('.log div');
  const lines = () => page.locator('.log div').count();
  const before = await lines();
  await lab.until('a log goes on', (n) => document.querySelectorAll('.log div').length > n + 2, before);
  const texts = await page.evaluate(() => [...document.querySelectorAll('.log div')].map((d) => Number(d.textContent.split(' ')[1])));
  lab.check(texts.every((n, at) => at === 0 || n === texts[at - 1] + 1), 'every line once and in order');
  await page.click('button:has-text("Pause")');
  await page.waitForTimeout(300);
  const paused = await lines();
  await page.waitForTimeout(1500);
  lab.check((await lines()) === paused, 'pausing');
  await page.click('button:has-text("Go on")');
  await lab.until('and going on, without a gap', (n) => document.querySelectorAll('.log div').length > n + 1, paused);
  await page.fill('input[placeholder=Filter]', 'line 3 ');
  await lab.until('filtering', () => document.querySelectorAll('.log div').length === 1 && document.querySelector('.log mark'));
  await lab.go('#/o/core/v1/pods/shop/db-0/logs');
  await page.check('label:has-text("Container before") input');
  await lab.until('the log of the container before', () => document.querySelector('.log').innerText.includes('my last words'), null, 60_000);
}

async function shell(lab) {
  const { page } = lab;
  await lab.go(`#/o/core/v1/pods/shop/${await pod(lab)}/shell`);
  await page.click('.strip button');
  const screen = () => document.querySelector('.terminal').innerText;
  await lab.until('a prompt', () => /[#$] ?$/m.test(document.querySelector('.terminal').innerText.trim()));
  await page.keyboard.type('echo $((6*7))x\n');
  await lab.until('a command answers', () => document.querySelector('.terminal').innerText.includes('42x'));
  await page.keyboard.type('stty size\n');
  await page.waitForTimeout(800);
  const [rows, columns] = /^(\d+) (\d+)\s*$/m.exec(await page.evaluate(screen)).slice(1).map(Number);
  lab.check(rows > 20 && columns > 80, `it has the window's size (${columns} columns, ${rows} rows)`);
  await page.setViewportSize({ width: 900, height: 600 });
  await page.waitForTimeout(500);
  await page.keyboard.type('clear; stty size\n');
  await page.waitForTimeout(800);
  const smaller = /^(\d+) (\d+)\s*$/m.exec(await page.evaluate(screen)).slice(1).map(Number);
  lab.check(smaller[0] < rows && smaller[1] < columns, `and follows it (${smaller[1]} columns, ${smaller[0]} rows)`);
  await page.setViewportSize({ width: 1440, height: 900 });
  await page.keyboard.type('printf "\\033[31mred\\033[0m \\033[1;44mblue\\033[0m\\n"\n');
  await lab.until('colours', () => [...document.querySelectorAll('.terminal span')].some((s) => s.textContent === 'red' && s.style.color === 'rgb(240, 113, 107)'));
  await page.keyboard.type('printf "<img src=x onerror=window.pwned=1>"; printf "\\033]0;title\\007\\033[999999;999999H\\033[9999P\\033[2J\\033[H"\n');
  // The shell asks the terminal where its cursor is, and loses what is typed before the answer.
  await page.waitForTimeout(800);
  await page.keyboard.type('vi /tmp/note\n');
  await page.waitForTimeout(1200);
  await page.keyboard.type('ifull screen');
  await lab.until('a full-screen program', () => /full screen\s*\n~/.test(document.querySelector('.terminal').innerText));
  await page.keyboard.press('Escape');
  // To vi an Escape with something right after it is another key.
  await page.waitForTimeout(800);
  await page.keyboard.type(':wq\n');
  await page.waitForTimeout(500);
  await page.keyboard.type('clear; cat /tmp/note; echo and $((1+1))\n');
  await lab.until('and out of it', () => /full screen\s*\nand 2/.test(document.querySelector('.terminal').innerText) && !document.querySelector('.terminal').innerText.includes('~\n~'));
  await lab.accessible('terminal');
  await page.keyboard.press('Control+Shift+E');
  lab.check(await page.evaluate(() => document.activeElement.tagName === 'BUTTON'), 'the keyboard gets out of the terminal');
  await page.focus('.terminal');
  await page.keyboard.type('exit 7\n');
  await lab.until('the exit code', () => document.querySelector('.strip').innerText.includes('exit code 7'));
}

// A user who may view one namespace.
async function rights(lab) {
  const own = lab.page;
  await lab.login(lab.env.BOB);
  await lab.go('#/r/core/v1/pods?ns=-');
  await lab.until('which right is missing is said', () => document.querySelector('.problem')?.innerText.includes('You need the right to list pods in the whole cluster.'));
  await lab.accessible('forbidden');
  await lab.go('#/?ns=-');
  await lab.until('what one may not see isn\'t said to be well', () => document.querySelector('main').innerText.includes('as far as you may see'));
  await lab.go('#/r/core/v1/pods?ns=shop');
  await lab.page.waitForSelector('tr.row');
  await lab.go(`#/o/apps/v1/deployments/shop/web`);
  await lab.until('what one may not do can\'t be clicked', () => document.querySelector('button.danger')?.disabled === true);
  await lab.go('#/r/core/v1/secrets?ns=shop');
  await lab.until('nor can secrets be read', () => document.querySelector('.problem')?.innerText.includes('list secrets in namespace shop'));
  const names = await lab.page.evaluate(async () => (await fetch('/api/v1/namespaces/shop/pods')).json().then((l) => l.items.map((p) => p.metadata.name)));
  await lab.go(`#/o/core/v1/pods/shop/${names.find((n) => n.startsWith('web'))}/shell`);
  await lab.page.click('.strip button');
  await lab.until('nor a shell be had', () => document.querySelector('.strip').innerText.includes('create pods/exec'));
  await lab.page.close();
  lab.page = own;
  lab.origin = new URL(lab.env.ADMIN).origin;
}

async function small(lab) {
  await lab.page.setViewportSize({ width: 390, height: 800 });
  for (const [name, hash] of [['overview', '#/'], ['pods', '#/r/core/v1/pods'], ['pod', `#/o/core/v1/pods/shop/db-0`]]) {
    await lab.go(hash);
    await lab.page.waitForTimeout(800);
    lab.check(await lab.page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${name} fits a telephone's width`);
    await lab.accessible(`small-${name}`);
  }
  await lab.page.setViewportSize({ width: 1440, height: 900 });
}

async function outage(lab) {
  await lab.go('#/r/core/v1/configmaps?ns=many');
  await lab.page.waitForSelector('tr.row');
  lab.server('stop');
  await lab.until('that the API is gone is said', () => !document.querySelector('.banner').classList.contains('hidden'), null, 60_000);
  lab.check((await lab.page.locator('tr.row').count()) > 0, 'what was there still shows');
  await lab.accessible('gone');
  lab.server('start');
  await lab.until('and that it is back', () => document.querySelector('.banner').classList.contains('hidden'), null, 90_000);
  await lab.api('POST', '/api/v1/namespaces/many/configmaps', { metadata: { name: 'later' } });
  await lab.until('without a reload all goes on', () => document.querySelector('main').innerText.includes('later'), null, 60_000);
}

// The parts that know no page, by many drawn inputs.
async function pure(lab) {
  await lab.go('#/');
  const wrong = await lab.page.evaluate(async () => {
    const { diff } = await import('/lib/diff.js');
    const { withoutSecrets, withoutManagedFields } = await import('/lib/yaml.js');
    const { Terminal } = await import('/lib/terminal.js');
    const { age, quantity, share, tone } = await import('/lib/format.js');
    const bad = [];
    const is = (what, got, wanted) => { if (JSON.stringify(got) !== JSON.stringify(wanted)) bad.push(`${what}: ${JSON.stringify(got)}, not ${JSON.stringify(wanted)}`); };
    let seed = 7;
    const draw = (n) => { seed = (seed * 1103515245 + 12345) % 2147483648; return Math.floor((seed / 2147483648) * n); };
    // A difference has both texts in it, and says no more than is needed where one line changed.
    for (let i = 0; i < 300; i += 1) {
      const a = Array.from({ length: draw(40) }, () => 'abc'[draw(3)]);
      const b = a.filter(() => draw(5)).flatMap((line) => (draw(6) ? [line] : [line, 'new']));
      const all = diff(a.join('\n'), b.join('\n'));
      is('before', all.filter((l) => l.sign !== '+').map((l) => l.text).join('\n'), a.join('\n'));
      is('after', all.filter((l) => l.sign !== '-').map((l) => l.text).join('\n'), b.join('\n'));
    }
    is('one line', diff('a\nb\nc', 'a\nx\nc').map((l) => l.sign).join(''), ' -+ ');
    const long = (n, mark) => Array.from({ length: n }, (_, at) => `${mark}${at}`).join('\n');
    is('a large difference ends', diff(long(20_000, 'a'), long(20_000, 'b')).length, 40_000);
    is('secrets', withoutSecrets('data:\n  a: eHg=\n  b: |\n    long\n    er\nkind: Secret\nmetadata:\n  annotations:\n    kubectl.kubernetes.io/last-applied-configuration: |\n      {"a":"eHg="}\n    x: y\n  name: n\nstringData:\n  c: d'),
      'data:\n  a: ••••••\n  b: ••••••\nkind: Secret\nmetadata:\n  annotations:\n    kubectl.kubernetes.io/last-applied-configuration: ••••••\n    x: y\n  name: n\nstringData:\n  c: ••••••');
    is('managed fields', withoutManagedFields('metadata:\n  managedFields:\n  - a: b\n    c: d\n  name: n\nspec: {}'), 'metadata:\n  name: n\nspec: {}');
    const encode = (text) => new TextEncoder().encode(text);
    const shown = (terminal) => terminal.screen.map((line) => line.map((c) => c.c).join('').trimEnd());
    const after = (text, columns = 10, rows = 4) => { const t = new Terminal(columns, rows); t.write(encode(text)); return t; };
    is('lines wrap', shown(after('0123456789ab')), ['0123456789', 'ab', '', '']);
    is('moving', shown(after('abc\u001b[2;3Hx\u001b[Ay')), ['abcy', '  x', '', '']);
    is('erasing', shown(after('abcdef\r\u001b[2C\u001b[K')), ['ab', '', '', '']);
    is('scrolling', shown(after('1\r\n2\r\n3\r\n4\r\n5')), ['2', '3', '4', '5']);
    is('the past', after('1\r\n2\r\n3\r\n4\r\n5').past.length, 1);
    is('a region', shown(after('1\r\n2\r\n3\r\n4\u001b[2;3r\u001b[3;1H\n')), ['1', '3', '', '4']);
    is('lines put in', shown(after('1\r\n2\r\n3\u001b[2;1H\u001b[L')), ['1', '', '2', '3']);
    is('the other screen', shown(after('here\u001b[?1049hthere\u001b[?1049l')), ['here', '', '', '']);
    is('titles are nothing', shown(after('\u001b]0;title\u0007a')), ['a', '', '', '']);
    is('wide letters', shown(after('世界x')), ['世界x', '', '', '']);
    const split = new Terminal(10, 2);
    for (const byte of encode('é\u001b[31m世')) split.write(new Uint8Array([byte]));
    is('bytes one by one', shown(split)[0], 'é世');
    let said = '';
    const asked = new Terminal(10, 4);
    asked.reply = (text) => { said = text; };
    asked.write(encode('ab\u001b[6n'));
    is('where it is', said, '\u001b[1;3R');
    // Whatever comes, it stays a screen of its size.
    for (let i = 0; i < 200; i += 1) {
      const t = new Terminal(5 + draw(40), 2 + draw(20));
      t.write(new Uint8Array(Array.from({ length: 400 }, () => (draw(4) ? 32 + draw(96) : [27, 91, 59, 13, 10, 8, 9, 155][draw(8)]))));
      t.resize(5 + draw(40), 2 + draw(20));
      t.write(encode('\u001b[99999999S\u001b[9999@\u001b[9999L\u001b[9999Mx'));
      if (t.screen.length !== t.rows || t.screen.some((line) => line.length !== t.columns || [...line].some((c) => !c)) || t.x >= t.columns || t.y >= t.rows) bad.push(`a screen of another size, ${i}`);
    }
    is('ages', ['2026-01-01T00:00:00Z', 'x', ''].map((t) => age(t, Date.parse('2026-01-01T00:05:30Z'))), ['5m30s', '', '']);
    is('quantities', ['100m', '1Gi', '2', '1e3', 'x'].map(quantity), [0.1, 2 ** 30, 2, 1000, 0]);
    is('shares', [share('1/2'), share('x')], [[1, 2], null]);
    is('tones', ['Running', 'CrashLoopBackOff', 'Pending', 'Completed', 'NotReady'].map(tone), ['good', 'bad', 'warn', '', 'bad']);
    return bad;
  });
  lab.check(wrong.length === 0, `differences, documents, the terminal and formats, by examples${wrong.length ? `:\n${wrong.slice(0, 10).join('\n')}` : ''}`);
}
