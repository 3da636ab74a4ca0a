// The playground in Chromium: the page works, and only the page may publish by it.

import assert from "node:assert/strict";
import { once } from "node:events";
import http from "node:http";
import { after, before } from "node:test";
import { chromium } from "playwright-core";
import { RawClient, browser as executablePath, channelName, publisher, server, unless, withoutBrowser } from "./support.mjs";

const FLAGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
const PANELS = ["ws", "sse"];

const root = await (await fetch(server)).text();
const missing = withoutBrowser || (!root.includes("Dunlin playground") && "the server has no playground, as `dunlin dev` has");
const test = unless(missing);

let browser;
if (!missing) before(async () => {
  browser = await chromium.launch({ executablePath, args: FLAGS });
});
after(() => browser?.close());

/** A page in a context of its own; `complaints` are what must not be there. */
async function open(t, url) {
  const context = await browser.newContext();
  t.after(() => context.close());
  context.setDefaultTimeout(10_000);
  const page = await context.newPage();
  const complaints = [];
  page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
  page.on("pageerror", (error) => complaints.push(String(error)));
  await page.exposeFunction("complain", (text) => complaints.push(text));
  await page.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (violation) => window.complain(`CSP: ${violation.violatedDirective} ${violation.blockedURI}`));
  });
  await page.goto(url.href);
  return { page, complaints };
}

async function openPlayground(t, channel) {
  const opened = await open(t, new URL(`/#${channel}`, server));
  await Promise.all(PANELS.map((panel) => opened.page.waitForSelector(`#${panel}[data-state=live]`)));
  return opened;
}

/** The last message that a panel shows, once it shows this many. */
async function shown(page, panel, count) {
  await page.waitForFunction(([id, n]) => document.querySelector(`#${id} [data-role=count]`).textContent === String(n), [panel, count]);
  return page.locator(`#${panel} li`).last().evaluate((item) => {
    const part = (role) => item.querySelector(`[data-role=${role}]`).textContent;
    return { kind: item.dataset.kind, event: part("event"), text: part("text"), latency: part("latency") };
  });
}

test("[P11 P79] what is published in one page is seen in both, over both protocols", async (t) => {
  const channel = channelName();
  const pages = [await openPlayground(t, channel), await openPlayground(t, channel)];
  const [{ page: first }] = pages;
  const text = "hello <b>there</b> \u{1F426}";
  await first.fill("#text", text);
  await first.click("#send");
  await first.waitForSelector("#result[data-result=ok]");
  for (const { page, complaints } of pages) {
    for (const panel of PANELS) {
      const message = await shown(page, panel, 1);
      assert.equal(message.kind, "message");
      assert.equal(message.text, text);
      assert.match(message.latency, /^\d+\.\d$/);
      for (const figure of ["last", "median"]) {
        assert.match(await page.textContent(`#${panel} [data-role=${figure}]`), /^\d+\.\d$/);
      }
    }
    assert.deepEqual(complaints, []);
  }
});

test("[P79] what comes from elsewhere is shown as it is, without a latency", async (t) => {
  const channel = channelName();
  const { page, complaints } = await openPlayground(t, channel);
  await publisher().trigger(channel, "log", "plain text");
  for (const panel of PANELS) {
    assert.deepEqual(await shown(page, panel, 1), { kind: "message", event: "log", text: "plain text", latency: "" });
    assert.equal(await page.textContent(`#${panel} [data-role=last]`), "–");
  }
  assert.deepEqual(complaints, []);
});

test("[P11] another channel is another stream, and stands in the address", async (t) => {
  const [before, next] = [channelName(), channelName()];
  const { page } = await openPlayground(t, before);
  await page.fill("#channel", next);
  await page.press("#channel", "Tab");
  await page.waitForURL((url) => url.hash === `#${next}`);
  await Promise.all(PANELS.map((panel) => page.waitForSelector(`#${panel}[data-state=live]`)));
  await publisher().trigger(before, "e", "old");
  await publisher().trigger(next, "e", "new");
  for (const panel of PANELS) assert.equal((await shown(page, panel, 1)).text, "new");
});

test("[P17 P83] a refusal says why", async (t) => {
  const { page } = await open(t, new URL(`/#${channelName("private-")}`, server));
  for (const [panel, status] of [["ws", /^401 ./], ["sse", /^403 ./]]) {
    await page.waitForSelector(`#${panel}[data-state=refused]`);
    assert.match(await page.textContent(`#${panel} [data-role=reason]`), status);
  }
  await page.fill("#event", "pusher:x");
  await page.click("#send");
  await page.waitForSelector("#result[data-result=error]");
  assert.match(await page.textContent("#result"), /400 .*reserved/);
});

test("a page of another origin may not publish", async (t) => {
  const elsewhere = http.createServer((_, response) => response.setHeader("content-type", "text/html").end("<title>elsewhere</title>"));
  elsewhere.listen(0, "127.0.0.1");
  await once(elsewhere, "listening");
  t.after(() => {
    elsewhere.close();
    elsewhere.closeAllConnections();
  });
  const channel = channelName();
  const raw = new RawClient(t);
  await raw.established();
  await raw.subscribe(channel);

  const { page } = await open(t, new URL(`http://127.0.0.1:${elsewhere.address().port}/`));
  const target = new URL("/dev/publish", server).href;
  const answered = page.waitForResponse(target);
  // Without CORS, so that the browser sends it without asking first.
  await page.evaluate(
    ([url, body]) => fetch(url, { method: "POST", mode: "no-cors", body }),
    [target, JSON.stringify({ channel, name: "e", data: "x" })],
  );
  assert.equal((await answered).status(), 403);
  await publisher().trigger(channel, "marker", "x");
  await raw.frame("marker", channel);
  assert.deepEqual(raw.frames.items.filter(({ event }) => event === "e"), []);
});
