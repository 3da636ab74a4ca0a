// docs/examples/chat in two browsers: Ann's and Bob's, each at a gateway of its own if
// DUNLIN_URLS names several.
//
// With DUNLIN_KILLER, an address that kills processes when it is asked to, Bob's gateway
// and then the owners of both rooms die while the two talk. With SCREENSHOTS, a folder,
// it has pictures of every stage afterwards (a path that is not absolute begins here).

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { cp, mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { basename, join } from "node:path";
import { after, before } from "node:test";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import { chromium } from "playwright-core";
import { RawClient, app, browser as executablePath, dial, gateways, signature, unless, within, withoutBrowser } from "./support.mjs";

const OPEN = "#open";
const SEALED = "#sealed";
const SEALED_CHANNEL = "private-encrypted-chat";
const CHANNELS = ["presence-chat", SEALED_CHANNEL];
const BOTH = ["Ann", "Bob"];
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
/** Within which everything is right again after a process was killed. */
const HEALS_MS = 15_000;

const test = unless(withoutBrowser);
const killer = process.env.DUNLIN_KILLER;
const skip = killer ? false : "DUNLIN_KILLER is not set: nothing is killed";
const folder = fileURLToPath(new URL(".", import.meta.url));

let ann, bob;
/** How to end what was started, in the end. */
const ends = [];

/** The example, where it finds the libraries of these tests: it has none of its own in the repository. */
if (!withoutBrowser) before(async () => {
  const copies = await mkdtemp(join(folder, "node_modules/.chat-"));
  ends.push(() => rm(copies, { recursive: true, force: true }));
  const filter = (path) => basename(path) !== "node_modules";
  await cp(join(folder, "../../docs/examples"), copies, { recursive: true, filter });
  // One chat: its backends have the same key.
  const chat = { file: join(copies, "chat/server.mjs"), key: randomBytes(32).toString("base64") };
  [ann, bob] = await Promise.all([open("Ann", gateways, chat), open("Bob", gateways.toReversed(), chat)]);
});
after(async () => {
  for (const end of ends.reverse()) await end();
});

/**
 * A load balancer of one browser: to the first of the gateways that takes the connection.
 * While it holds, whoever connects has to wait, and is not refused: after a refusal
 * pusher-js lets up to 15 s pass until it tries again.
 */
async function balancer(places) {
  const open = new Set();
  const way = { taken: undefined, held: Promise.resolve(), release: () => {} };
  way.hold = () => {
    way.held = new Promise((resolve) => (way.release = resolve));
  };
  const listener = createServer(async (near) => {
    open.add(near);
    let far;
    near.on("error", () => near.destroy());
    near.on("close", () => {
      open.delete(near);
      far?.destroy();
    });
    await way.held;
    for (const place of near.destroyed ? [] : places) {
      const [tried, there] = dial(place);
      if (await once(tried, there).then(() => true, () => false)) {
        far = tried;
        way.taken = place.port;
        break;
      }
    }
    if (!far || near.destroyed) {
      near.destroy();
      far?.destroy();
      return;
    }
    far.on("error", () => far.destroy());
    far.on("close", () => near.destroy());
    near.pipe(far).pipe(near);
  });
  listener.listen(0, "127.0.0.1");
  await once(listener, "listening");
  way.port = listener.address().port;
  ends.push(() => {
    way.release();
    open.forEach((near) => near.destroy());
    listener.close();
  });
  return way;
}

/** The chat's backend, that reaches the gateways by this port, and has its pages do so; where it is. */
async function backend(port, { file, key }) {
  const env = {
    ...process.env,
    PUSHER_HOST: "127.0.0.1",
    PUSHER_PORT: String(port),
    PUSHER_APP_ID: app.id,
    PUSHER_APP_KEY: app.key,
    PUSHER_APP_SECRET: app.secret,
    PUSHER_ENCRYPTION_KEY: key,
    PORT: "0",
  };
  // In this process, so that it is not left behind when that is killed.
  const worker = new Worker(file, { env, stdout: true });
  ends.push(() => worker.terminate());
  const [line] = await within("the chat's backend", once(createInterface(worker.stdout), "line"));
  return line.match(/http:\S+/)[0];
}

/** A browser with the page, in which somebody has entered. */
async function open(name, places, chat) {
  const way = await balancer(places);
  const url = await backend(way.port, chat);
  const browser = await chromium.launch({ executablePath, args: FLAGS });
  ends.push(() => browser.close());
  const page = await browser.newPage({ viewport: { width: 1100, height: 640 } });
  page.setDefaultTimeout(10_000);
  const complaints = [];
  page.on("pageerror", (error) => complaints.push(String(error)));
  await page.exposeFunction("complain", (text) => complaints.push(text));
  await page.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (violation) => window.complain(`CSP: ${violation.violatedDirective} ${violation.blockedURI}`));
  });
  await page.goto(url);
  await page.fill("#name", name);
  await page.click("#enter-button");
  const user = { name, page, way, url, complaints };
  await live(user);
  return user;
}

const live = ({ page }) => Promise.all([OPEN, SEALED].map((room) => page.waitForSelector(`${room}[data-state=live]`, { timeout: HEALS_MS })));

/** Waits until a page lists exactly these, each once. */
async function lists({ name, page }, users, timeout = HEALS_MS) {
  const look = (users) => {
    const listed = [...document.querySelectorAll("#members li")].map((row) => row.dataset.user);
    return listed.join() === users.join() && document.querySelector("#count").textContent === String(users.length);
  };
  await page.waitForFunction(look, users, { timeout }).catch(async (error) => {
    throw new Error(`${name} sees ${await page.textContent("aside")}, not ${users}`, { cause: error });
  });
}

/** What a room shows, row by row, such as `Ann: hello`; notes and gaps with their kind. */
const shown = ({ page }, room) => page.locator(`${room} [data-role=log] li`).evaluateAll((rows) => rows.map((row) => {
  const part = (role) => row.querySelector(`[data-role=${role}]`).textContent;
  return row.dataset.kind === "message" ? `${part("user")}: ${part("said")}` : `${row.dataset.kind} ${row.textContent}`;
}));
const messages = async (user, room) => (await shown(user, room)).filter((row) => /^(Ann|Bob): /.test(row));

/** Waits until a room shows a message. */
async function sees({ name, page }, room, message, timeout = HEALS_MS) {
  const look = ([room, message]) => [...document.querySelectorAll(`${room} li[data-kind=message]`)].some((row) => {
    const part = (role) => row.querySelector(`[data-role=${role}]`).textContent;
    return `${part("user")}: ${part("said")}` === message;
  });
  await page.waitForFunction(look, [room, message], { timeout }).catch(async (error) => {
    throw new Error(`${name} does not see "${message}" but ${await page.textContent(room)}`, { cause: error });
  });
}

/** Sends, and does not wait. */
async function say({ page }, room, text) {
  await page.fill(`${room} [data-role=text]`, text);
  await page.press(`${room} [data-role=text]`, "Enter");
}

/** One says something after the other has spoken, and both see it; the messages. */
async function talk(room, words) {
  const expected = [];
  for (const [number, word] of words.entries()) {
    const from = number % 2 ? bob : ann;
    await say(from, room, word);
    expected.push(`${from.name}: ${word}`);
    await sees(ann, room, expected.at(-1));
    await sees(bob, room, expected.at(-1));
  }
  return expected;
}

/** Both write at once, and see the same: everything, once, in one order, and each in the order of who wrote it. */
async function talkAtOnce(room, word) {
  const count = 5;
  const texts = Array.from({ length: count }, (_, number) => `${word} ${number}`);
  await Promise.all([ann, bob].map(async (from) => {
    for (const text of texts) await say(from, room, text);
  }));
  const last = (from) => `${from.name}: ${texts.at(-1)}`;
  for (const reader of [ann, bob]) {
    for (const from of [ann, bob]) await sees(reader, room, last(from));
  }
  const [one, other] = await Promise.all([ann, bob].map(async (user) => (await messages(user, room)).slice(-2 * count)));
  assert.deepEqual(one, other);
  for (const { name } of [ann, bob]) {
    assert.deepEqual(one.filter((row) => row.startsWith(name)), texts.map((text) => `${name}: ${text}`));
  }
}

async function pictures(stage) {
  if (!process.env.SCREENSHOTS) return;
  for (const { name, page } of [ann, bob]) {
    await page.screenshot({ path: join(process.env.SCREENSHOTS, `${stage}-${name.toLowerCase()}.png`) });
  }
}

async function kill(what) {
  const answer = await within(`the end of ${what}`, fetch(`${killer}/${what}`, { method: "POST" }), 90_000);
  assert.equal(answer.status, 200, await answer.text());
}

test("[P23 P24] two see each other, at different gateways", async () => {
  await Promise.all([ann, bob].map((user) => lists(user, BOTH)));
  assert.deepEqual([ann.way.taken, bob.way.taken], [gateways[0].port, gateways.at(-1).port]);
  for (const { page } of [ann, bob]) assert.equal(await page.textContent("#state"), "connected");
  await pictures("1-together");
});

test("[P30] typing is seen, and no longer after a while or when a message comes", async () => {
  const typing = (text) => ann.page.waitForFunction((text) => document.querySelector("[data-role=typing]").textContent === text, text);
  const field = bob.page.locator(`${OPEN} [data-role=text]`);
  await field.pressSequentially("h");
  await typing("Bob is typing…");
  await pictures("2-typing");
  await typing("");
  await field.pressSequentially("ello");
  await typing("Bob is typing…");
  await field.press("Enter");
  await sees(ann, OPEN, "Bob: hello");
  assert.equal(await ann.page.textContent("[data-role=typing]"), "");
  assert.equal(await bob.page.textContent("[data-role=typing]"), "");
});

test("[P13] what is said is seen by both, as text, in one order", async () => {
  const before = await messages(ann, OPEN);
  const said = await talk(OPEN, ["<b>bold</b> & 'quoted' \u{1F426}", "two", "three", "four"]);
  for (const user of [ann, bob]) assert.deepEqual(await messages(user, OPEN), [...before, ...said]);
  await talkAtOnce(OPEN, "at once");
  await pictures("3-said");
});

test("[P13 P20] what is said in the encrypted room is seen by both, and by nobody in the middle", async (t) => {
  const raw = new RawClient(t);
  const { socket_id: id } = await raw.established();
  raw.send("pusher:subscribe", { channel: SEALED_CHANNEL, auth: signature(id, SEALED_CHANNEL) });
  await raw.frame("pusher_internal:subscription_succeeded", SEALED_CHANNEL);
  const said = await talk(SEALED, ["the secret is żółw", "keep it"]);
  for (const user of [ann, bob]) assert.deepEqual(await messages(user, SEALED), said);
  const frames = await raw.frames.when("both", (all) => {
    const found = all.filter(({ event, channel }) => event === "message" && channel === SEALED_CHANNEL);
    return found.length === 2 && found;
  });
  for (const { data } of frames) assert.deepEqual(Object.keys(JSON.parse(data)).sort(), ["ciphertext", "nonce"]);
  for (const word of ["secret", "żółw", "keep", "Ann"]) assert.ok(!JSON.stringify(raw.frames.items).includes(word), word);
  await talkAtOnce(SEALED, "sealed at once");
  await pictures("4-sealed");
});

test("what a backend cannot take is refused, and it goes on", async () => {
  const post = async (path, fields, headers = {}) => {
    const answer = await fetch(new URL(path, ann.url), { method: "POST", body: new URLSearchParams(fields), headers });
    return [answer.status, (await answer.json()).error ?? ""];
  };
  const good = { name: "Eve", room: CHANNELS[0], text: "x" };
  const subscribe = { name: "Eve", socket_id: "1.1", channel_name: CHANNELS[0] };
  for (const [path, fields, status, word, headers] of [
    ["/message", {}, 400, /name/],
    ["/message", { ...good, name: "a\u0000b" }, 400, /name/],
    ["/message", { ...good, name: "x".repeat(33) }, 400, /name/],
    ["/message", { ...good, room: "presence-other" }, 400, /room/],
    ["/message", { ...good, text: " " }, 400, /text/],
    ["/message", { ...good, text: "x".repeat(2_001) }, 400, /text/],
    ["/message", { ...good, text: "x".repeat(100_000) }, 413, /32768/],
    ["/message", good, 403, /page/, { origin: "http://elsewhere.example" }],
    ["/auth", { ...subscribe, socket_id: "1" }, 400, /socket_id/],
    ["/auth", { ...subscribe, channel_name: "private-other" }, 403, /room/],
    ["/constructor", good, 404, /POST/],
  ]) {
    const [told, error] = await post(path, fields, headers);
    assert.equal(told, status, `${path} ${JSON.stringify(fields).slice(0, 100)}: ${error}`);
    assert.match(error, word);
  }
  assert.equal((await fetch(new URL("/..%2fserver.mjs", ann.url))).status, 404);
  const [ok] = await post("/auth", subscribe);
  assert.equal(ok, 200);
});

test("the pages had nothing to complain about", () => {
  for (const { complaints } of [ann, bob]) assert.deepEqual(complaints, []);
});

test("Bob's gateway is killed: he is back by the other and has missed nothing that is kept for him", { skip }, async () => {
  const before = { open: await messages(ann, OPEN), sealed: await messages(ann, SEALED) };
  bob.way.hold();
  await kill("gateway/c2");
  await bob.page.waitForSelector("#state:not([data-state=connected])");
  const said = { open: ["anybody?"], sealed: ["one", "two", "three"] };
  for (const text of said.sealed) await say(ann, SEALED, text);
  for (const text of said.open) await say(ann, OPEN, text);
  await sees(ann, SEALED, "Ann: three");
  await sees(ann, OPEN, "Ann: anybody?");
  await pictures("5-bob-is-away");
  bob.way.release();
  await live(bob);
  await Promise.all([ann, bob].map((user) => lists(user, BOTH)));
  assert.equal(bob.way.taken, gateways[0].port);

  const mine = (texts) => texts.map((text) => `Ann: ${text}`);
  await sees(bob, SEALED, "Ann: three");
  const after = await talk(SEALED, ["welcome back", "thanks"]);
  for (const user of [ann, bob]) assert.deepEqual(await messages(user, SEALED), [...before.sealed, ...mine(said.sealed), ...after]);

  // In the other room something may be missing, and then the page says so.
  const open = await talk(OPEN, ["here again?", "yes"]);
  assert.deepEqual(await messages(ann, OPEN), [...before.open, ...mine(said.open), ...open]);
  const seen = await messages(bob, OPEN);
  const missed = mine(said.open).filter((message) => !seen.includes(message));
  assert.deepEqual(seen, [...before.open, ...mine(said.open).filter((message) => !missed.includes(message)), ...open]);
  const gaps = (await shown(bob, OPEN)).filter((row) => row.startsWith("gap "));
  assert.ok(missed.length === 0 || gaps.length === 1, `${missed} without a word`);
  assert.deepEqual((await shown(bob, SEALED)).filter((row) => row.startsWith("gap ")), []);
  await pictures("6-bob-is-back");
});

for (const channel of CHANNELS) {
  test(`the owner of ${channel} is killed: nobody leaves, nothing is lost, doubled or out of order`, { skip }, async () => {
    const rooms = [OPEN, SEALED];
    const users = [ann, bob];
    const before = await Promise.all(users.map((user) => Promise.all(rooms.map((room) => shown(user, room)))));
    await kill(`owner/${channel}`);
    const said = [];
    for (const room of rooms) said.push(await talk(room, [`${channel} goes on`, `${channel} does`]));
    await Promise.all(users.map((user) => lists(user, BOTH)));
    for (const [user, logs] of before.entries()) {
      for (const [room, rows] of logs.entries()) {
        assert.deepEqual(await shown(users[user], rooms[room]), [...rows, ...said[room]], `${users[user].name} in ${rooms[room]}`);
      }
    }
    for (const room of rooms) await talkAtOnce(room, `after ${channel}`);
    await pictures(`7-after-the-owner-of-${channel}`);
  });
}

test("in the end both have seen the same, and nothing twice", async () => {
  assert.deepEqual(await messages(bob, SEALED), await messages(ann, SEALED));
  for (const user of [ann, bob]) {
    for (const room of [OPEN, SEALED]) {
      const seen = await messages(user, room);
      assert.equal(new Set(seen).size, seen.length, `${user.name} in ${room}: ${seen}`);
    }
  }
});

test("[P24 P26] who closes the page has left, and came and went once each time", async () => {
  await bob.page.close();
  await lists(ann, ["Ann"]);
  const changes = (await shown(ann, OPEN)).filter((row) => row.startsWith("note Bob"));
  assert.equal(changes.at(-1), "note Bob has left");
  // Ann may have been there before him, or after.
  const alternate = changes.every((row, number) => number === 0 || row !== changes[number - 1]);
  assert.ok(alternate, changes.join());
  if (process.env.SCREENSHOTS) await ann.page.screenshot({ path: join(process.env.SCREENSHOTS, "8-bob-has-left.png") });
  for (const { complaints } of [ann, bob]) assert.deepEqual(complaints, []);
});
