// The console as a person uses it, in headless Chromium. Each check says what it held; the first that doesn't hold ends the run.
// env: ADMIN, BOB (printed addresses), BROWSER, BROWSER_DATA, OUT, ROOT, PODS. Arguments: names of parts to run, all without.

import { createRequire } from 'node:module';
import { readFileSync, writeFileSync } from 'node:fs';
import { startBrowser, Lab } from './lab.mjs';
import { parts } from './parts.mjs';
import { scale } from './scale.mjs';

const { env } = process;
const require = createRequire(`${env.OUT}/`);
const { chromium } = require('playwright-core');
const axe = readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');

const context = await startBrowser(chromium, env);
const lab = new Lab(context, axe, env);
let status = 0;
try {
  await lab.login(env.ADMIN);
  const wanted = process.argv.slice(2);
  for (const [name, part] of [...Object.entries(parts), ['scale', scale]]) {
    if (wanted.length && !wanted.includes(name)) continue;
    lab.part = name;
    await part(lab);
  }
  await lab.quiet();
  if (lab.ill.length) throw new Error(lab.ill.join('\n'));
} catch (error) {
  status = 1;
  console.log([`FAILED in ${lab.part}: ${error.stack ?? error}`, ...lab.ill].join('\n'));
  await lab.page.screenshot({ path: `${env.OUT}/failed.png` }).catch(() => {});
} finally {
  lab.results.checks = lab.checks;
  writeFileSync(`${env.OUT}/results.json`, `${JSON.stringify(lab.results, null, 2)}\n`);
  await context.close();
}
process.exit(status);
