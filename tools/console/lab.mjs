// A page of the console, and what checks need: going somewhere, asking the API by the console, axe, pictures.

import { execFileSync } from 'node:child_process';

export function startBrowser(chromium, env) {
  return chromium.launchPersistentContext(env.BROWSER_DATA, {
    executablePath: env.BROWSER, headless: true, viewport: { width: 1440, height: 900 }, colorScheme: 'light',
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
  });
}

export class Lab {
  constructor(context, axe, env) {
    Object.assign(this, { context, axe, env, part: '', checks: 0, results: { axe: {} }, errors: [], ill: [] });
  }

  async login(address) {
    this.page = await this.context.newPage();
    this.page.setDefaultTimeout(20_000);
    this.origin = new URL(address).origin;
    this.page.on('pageerror', (error) => this.errors.push(error.stack));
    this.page.on('dialog', (dialog) => { this.errors.push(`a dialog: ${dialog.message()}`); dialog.dismiss(); });
    this.page.on('console', (message) => {
      if (/Content Security Policy|Trusted/i.test(message.text())) this.errors.push(message.text());
    });
    await this.page.goto(address);
    await this.page.waitForSelector('.frame');
    this.check(!this.page.url().includes('token'), 'the token doesn\'t stay in the address');
  }

  check(holds, what) {
    if (!holds) throw new Error(what);
    this.checks += 1;
    console.log(`${new Date().toTimeString().slice(0, 8)} ok   ${what}`);
  }

  // Waits until an expression in the page is true.
  async until(what, expression, argument, timeout = 30_000) {
    try {
      await this.page.waitForFunction(expression, argument, { timeout, polling: 100 });
    } catch {
      throw new Error(`${what}: ${(await this.text()).slice(0, 1500)}`);
    }
    this.check(true, what);
  }

  text() {
    return this.page.evaluate(() => document.querySelector('main')?.innerText ?? document.body.innerText);
  }

  async go(hash) {
    await this.page.goto(`${this.origin}/${hash}`);
    await this.page.waitForSelector('main > *');
  }

  // By the console's own way, with its cookie.
  async api(method, path, body, type = 'application/json') {
    return this.page.evaluate(async ([m, p, b, t]) => {
      const answer = await fetch(p, { method: m, body: b === undefined ? undefined : JSON.stringify(b), headers: { 'content-type': t } });
      return { status: answer.status, body: await answer.json() };
    }, [method, path, body, type]);
  }

  async see(name) {
    await this.page.screenshot({ path: `${this.env.OUT}/${name}.png` });
  }

  async accessible(name) {
    for (const scheme of ['light', 'dark']) {
      await this.page.emulateMedia({ colorScheme: scheme });
      await this.page.evaluate(this.axe);
      const found = await this.page.evaluate(() => window.axe.run(document, { resultTypes: ['violations'] }));
      const said = found.violations.map((v) => `${v.id} (${v.impact}): ${v.nodes.slice(0, 3).map((n) => `${n.html.slice(0, 160)} ${n.any.concat(n.all)[0]?.message ?? ''}`).join(' | ')}`);
      this.results.axe[`${name} ${scheme}`] = found.violations.length;
      // All are told before the run fails.
      if (said.length) this.ill.push(`axe: ${name} in ${scheme}\n${said.join('\n')}`);
      else this.check(true, `axe: ${name} in ${scheme}`);
      await this.see(`${name}-${scheme}`);
    }
    await this.page.emulateMedia({ colorScheme: 'light' });
  }

  server(what) {
    execFileSync(`${this.env.ROOT}/conformance/cluster.sh`, [what], { env: process.env, stdio: 'ignore' });
  }

  // Nothing that an object said has run, and no page failed.
  async quiet() {
    const pwned = await this.page.evaluate(() => window.pwned ?? document.querySelectorAll('main img, main script, main iframe').length);
    this.check(pwned === 0, 'nothing hostile became a part of the page');
    this.check(this.errors.length === 0, `no errors in the page${this.errors.length ? `: ${this.errors.join('\n')}` : ''}`);
  }
}
