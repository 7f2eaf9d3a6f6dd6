// Thousands of pods: how soon there are rows, how the table scrolls, what a search and a storm of changes cost.

export async function scale(lab) {
  const { page } = lab;
  const many = Number(lab.env.PODS);
  await make(lab, many);
  const figures = { pods: many };
  lab.results.scale = figures;
  await page.goto('about:blank');
  await page.goto(`${lab.origin}/#/r/core/v1/pods?ns=many`);
  // Both by the page's own clock, from the moment it was asked for.
  const times = await page.evaluate((all) => new Promise((done) => {
    const seen = {};
    const look = () => {
      if (!seen.first && document.querySelector('tr.row')) seen.first = Math.round(performance.now());
      if (document.querySelector('.count')?.textContent === all && document.querySelector('[data-state="live"]')) return done({ ...seen, all: Math.round(performance.now()) });
      return requestAnimationFrame(look);
    };
    look();
  }), many.toLocaleString('en'));
  figures.firstRowsMs = times.first;
  figures.allRowsMs = times.all;
  lab.check(times.first < 5000, `first rows after ${times.first} ms, all ${many} after ${times.all} ms`);
  const rows = await page.locator('tr.row').count();
  figures.rowElements = rows;
  lab.check(rows < 80, `${rows} rows are elements`);
  figures.work = await work(page);
  // A busy machine makes some slow; half of them say what it costs.
  lab.check(figures.work.p50 < 16, `what a step of scrolling costs the page, script and layout: ${JSON.stringify(figures.work)} ms`);
  // Frames are also painted, here by the processor, beside whatever else the machine does: told, and bounded loosely.
  figures.scroll = await frames(page, 'scroll');
  lab.check(figures.scroll.p95 < 250, `scrolling from end to end: ${JSON.stringify(figures.scroll)} ms a frame`);
  await lab.until('the last row is there', (n) => document.querySelector('.grid').getAttribute('aria-rowcount') === String(n + 1) && [...document.querySelectorAll('tr.row')].some((r) => r.getAttribute('aria-rowindex') === String(n + 1)), many);
  await page.focus('.grid');
  await page.keyboard.press('Home');
  await page.keyboard.press('End');
  lab.check(await page.evaluate(() => document.querySelector('tr.row[aria-selected="true"]') !== null), 'the keyboard gets to the end');
  figures.searchMs = await page.evaluate(() => new Promise((done) => {
    const began = performance.now();
    const input = document.querySelector('.top input');
    input.value = '-0042';
    input.dispatchEvent(new Event('input'));
    const look = () => (document.querySelectorAll('tr.row').length <= 2 ? done(Math.round(performance.now() - began)) : requestAnimationFrame(look));
    look();
  }));
  lab.check(figures.searchMs < 500, `a search shows after ${figures.searchMs} ms`);
  await page.evaluate(() => { const input = document.querySelector('.top input'); input.value = ''; input.dispatchEvent(new Event('input')); });
  await page.waitForTimeout(500);
  // Changes while one scrolls: a storm of patches by the API.
  const storm = page.evaluate(async () => {
    for (let i = 0; i < 400; i += 8) {
      await Promise.all(Array.from({ length: 8 }, (_, at) => fetch(`/api/v1/namespaces/many/pods/pod-${String(i + at).padStart(5, '0')}`, {
        method: 'PATCH', headers: { 'content-type': 'application/merge-patch+json' }, body: JSON.stringify({ metadata: { labels: { storm: String(i) } } }),
      })));
    }
  });
  figures.scrollInStorm = await frames(page, 'storm');
  await storm;
  lab.check(figures.scrollInStorm.p95 < 250, `scrolling while pods change: ${JSON.stringify(figures.scrollInStorm)} ms a frame`);
  figures.heapMiB = await page.evaluate(() => Math.round(performance.memory.usedJSHeapSize / 2 ** 20));
  await page.evaluate(() => { document.querySelector('.grid').scrollTop = 40_000; });
  await page.waitForTimeout(500);
  await lab.accessible('many');
  for (const [name, hash] of [['overview', '#/?ns=many'], ['topology', '#/topology?ns=many']]) {
    const began = Date.now();
    await lab.go(hash);
    await page.waitForFunction((n) => document.querySelector('main').innerText.includes(n) || document.querySelector('.map svg')?.textContent.includes('more'), many.toLocaleString('en'), { timeout: 60_000 });
    figures[`${name}Ms`] = Date.now() - began;
    lab.check(true, `${name} of ${many} pods after ${figures[`${name}Ms`]} ms`);
    await lab.see(`many-${name}`);
  }
}

// Pods that nobody schedules: objects are what is measured.
async function make(lab, many) {
  const began = Date.now();
  const failed = await lab.page.evaluate(async (n) => {
    let next = 0;
    let bad = 0;
    const worker = async () => {
      while (next < n) {
        const at = next++;
        const pod = {
          apiVersion: 'v1', kind: 'Pod', metadata: { name: `pod-${String(at).padStart(5, '0')}`, labels: { app: `app-${at % 50}`, tier: at % 3 ? 'front' : 'back' } },
          spec: { schedulerName: 'nobody', containers: [{ name: 'c', image: 'registry.example/app:1', resources: { requests: { cpu: '10m', memory: '16Mi' } } }] },
        };
        const answer = await fetch('/api/v1/namespaces/many/pods', { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(pod) });
        if (!answer.ok && answer.status !== 409) bad += 1;
        await answer.text();
      }
    };
    await Promise.all(Array.from({ length: 5 }, worker));
    return bad;
  }, many);
  lab.check(failed === 0, `${many} pods made in ${((Date.now() - began) / 1000).toFixed(0)} s`);
}

// Scrolls for two seconds and gives what frames took.
async function frames(page, kind) {
  return page.evaluate((how) => new Promise((done) => {
    const grid = document.querySelector('.grid');
    const far = grid.scrollHeight - grid.clientHeight;
    const steps = 120;
    const took = [];
    let last = performance.now();
    let at = 0;
    const step = (now) => {
      took.push(now - last);
      last = now;
      at += 1;
      grid.scrollTop = how === 'scroll' ? (far * at) / steps : far * Math.abs(Math.sin((at / steps) * 6));
      if (at < steps) return requestAnimationFrame(step);
      grid.scrollTop = far;
      const sorted = took.slice(1).sort((a, b) => a - b);
      const of = (part) => Math.round(sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))]);
      return done({ p50: of(0.5), p95: of(0.95), longest: Math.round(sorted[sorted.length - 1]) });
    };
    requestAnimationFrame(step);
  }), kind);
}

// Steps through all rows, each far from the last, and the time until they are laid out.
async function work(page) {
  return page.evaluate(() => {
    const grid = document.querySelector('.grid');
    const took = [];
    for (let at = 0; at < 200; at += 1) {
      grid.scrollTop = (grid.scrollHeight * ((at * 37) % 200)) / 200;
      const began = performance.now();
      grid.dispatchEvent(new Event('scroll'));
      grid.querySelector('table').getBoundingClientRect();
      took.push(performance.now() - began);
    }
    took.sort((a, b) => a - b);
    return { p50: Number(took[100].toFixed(1)), p95: Number(took[190].toFixed(1)), longest: Number(took[199].toFixed(1)) };
  });
}
