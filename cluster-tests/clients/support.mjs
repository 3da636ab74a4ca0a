// What the tests of client libraries share: where the server is, clients that
// are closed at the end of their test, and waiting with a deadline.
//
// The server is started by whoever runs the tests, and may be any that speaks the
// protocol; docs/TESTING.md says what can be told of it:
//   DUNLIN_URL=http://127.0.0.1:6001 npm test

import { createHmac, randomBytes } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { createServer, connect as connectTo, isIP } from "node:net";
import { once } from "node:events";
import { test } from "node:test";
import tls from "node:tls";
import Pusher from "pusher-js";
import Publisher from "pusher";
import WebSocket from "ws";

export const DEADLINE_MS = 10_000;

/** The app that `dunlin dev` serves unless told otherwise; or the one that is named. */
export const app = {
  id: process.env.PUSHER_APP_ID ?? "app-id",
  key: process.env.PUSHER_APP_KEY ?? "app-key",
  secret: process.env.PUSHER_APP_SECRET ?? "app-secret",
};

/** Where clients connect. */
export const server = new URL(address());
/** The same at several gateways, if there are. */
export const gateways = (process.env.DUNLIN_URLS ?? server.href).split(",").map((url) => new URL(url));

function address() {
  const { DUNLIN_URL, PUSHER_HOST, PUSHER_PORT = "", PUSHER_SCHEME = "http" } = process.env;
  if (DUNLIN_URL) return DUNLIN_URL;
  if (PUSHER_HOST) return `${PUSHER_SCHEME}://${PUSHER_HOST}:${PUSHER_PORT}`;
  throw new Error(
    "DUNLIN_URL is not set. Start a server (dunlin dev --listen 127.0.0.1:6001) and say where it is: " +
      "DUNLIN_URL=http://127.0.0.1:6001 npm test",
  );
}

/** `test`, unless something is missing: then every test is skipped, for this reason. */
export const unless = (missing) => (missing ? (title) => test(title, { skip: missing }, () => {}) : test);

/** Why what needs another app is skipped, if it is; PUSHER_MORE_APPS says which of apps.toml the server has. */
export function withoutApp(id) {
  const has = (process.env.PUSHER_MORE_APPS ?? "").split(",").includes(id);
  return !has && `PUSHER_MORE_APPS does not name ${id}, an app as in apps.toml`;
}

export const browser = process.env.CHROMIUM ?? "/usr/bin/chromium";
export const withoutBrowser = !existsSync(browser) && `there is no ${browser}, and CHROMIUM names no other`;

/** The examples in a language that a page of docs/protocol has, told of the server that there is. */
export function documented(language, name = "pusher") {
  const page = readFileSync(new URL(`../../docs/protocol/${name}.md`, import.meta.url), "utf8");
  const blocks = [...page.matchAll(/^```(\w+)\n(.*?)^```$/gms)].filter(([, of]) => of === language);
  const port = server.port || (isTls(server) ? "443" : "80");
  const there = {
    "http://127.0.0.1:6001": server.origin,
    "127.0.0.1": server.hostname,
    6001: port,
    "useTLS: false": `useTLS: ${isTls(server)}`,
    "forceTLS: false": `forceTLS: ${isTls(server)}`,
    "wssPort: 443": `wssPort: ${port}`,
    "app-id": app.id,
    'app_id="12"': `app_id="${app.id}"`,
    "app-key": app.key,
    "my-key": app.key,
    "app-secret": app.secret,
  };
  // All at once: what is put in may look like what is replaced. The longest first.
  const names = Object.keys(there).sort((a, b) => b.length - a.length);
  const any = new RegExp(names.map((name) => name.replaceAll(".", "\\.")).join("|"), "g");
  return blocks.map(([, , code]) => code.replace(any, (name) => there[name]));
}

/** A channel that no other test uses. */
export function channelName(prefix = "") {
  return `${prefix}test-${randomBytes(6).toString("hex")}`;
}

/** The signature of a subscription, as an application's backend makes it. */
export function signature(socketId, channel, { secret = app.secret, channelData } = {}) {
  const text = [socketId, channel, ...(channelData === undefined ? [] : [channelData])].join(":");
  return `${app.key}:${createHmac("sha256", secret).update(text).digest("hex")}`;
}

/** Awaits a promise; fails saying what was waited for (a text, or what makes one then). */
export async function within(what, promise, ms = DEADLINE_MS) {
  let timer;
  // Made here, so that its stack leads to whoever waits.
  const error = new Error();
  const deadline = new Promise((_, reject) => {
    timer = setTimeout(() => {
      error.message = `waited ${ms} ms for ${typeof what === "function" ? what() : what}`;
      reject(error);
    }, ms);
  });
  try {
    return await Promise.race([promise, deadline]);
  } finally {
    clearTimeout(timer);
  }
}

/** Keeps what arrives, in order, and wakes those who wait for it. */
export class Inbox {
  items = [];
  #waiting = new Set();

  push(item) {
    this.items.push(item);
    for (const look of [...this.#waiting]) look();
  }

  /** The first truthy answer of `look(items)`. */
  when(what, look, ms = DEADLINE_MS) {
    let check;
    const found = new Promise((resolve, reject) => {
      check = () => {
        try {
          const answer = look(this.items);
          if (answer) resolve(answer);
        } catch (error) {
          reject(error);
        }
      };
      this.#waiting.add(check);
      check();
    });
    return within(() => `${what}; arrived so far: ${this.items.length}`, found, ms).finally(() => this.#waiting.delete(check));
  }

  /** The first item that fits. */
  first(what, fits, ms) {
    return this.when(what, (items) => items.find(fits), ms);
  }
}

const isTls = ({ protocol }) => protocol === "https:";

/** What pusher-js has to know to connect there. */
export const reach = (at) => ({
  cluster: "",
  wsHost: at.hostname,
  wsPort: Number(at.port) || 80,
  wssPort: Number(at.port) || 443,
  forceTLS: isTls(at),
  enabledTransports: ["ws"],
});

/** A pusher-js client. `frames` has every frame that the server sent it. */
export function pusherClient(t, { key = app.key, at = server, ...options } = {}) {
  const client = new Pusher(key, { ...reach(at), ...options });
  const frames = new Inbox();
  client.connection.bind("message", (frame) => frames.push(frame));
  t.after(() => client.disconnect());
  return { client, frames };
}

/** Resolves to what pusher-js hands to a handler of an event. */
export function bound(target, event, ms) {
  const came = new Promise((resolve) => {
    const handler = (data) => {
      target.unbind(event, handler);
      resolve(data);
    };
    target.bind(event, handler);
  });
  return within(event, came, ms);
}

/** Subscribes with pusher-js and waits for the acknowledgement. */
export async function subscribe(client, name) {
  const channel = client.subscribe(name);
  await bound(channel, "pusher:subscription_succeeded");
  return channel;
}

/** A client of the HTTP API: the `pusher` SDK. */
export function publisher({ at = server, ...options } = {}) {
  return new Publisher({
    appId: app.id,
    key: app.key,
    secret: app.secret,
    host: at.hostname,
    port: at.port,
    useTLS: isTls(at),
    ...options,
  });
}

/** A WebSocket without a library's opinions. */
export class RawClient {
  frames = new Inbox();
  #closed;

  constructor(t, path = `/app/${app.key}?protocol=7`, at = server, options = {}) {
    this.socket = new WebSocket(new URL(path, at.href.replace("http", "ws")), options);
    this.socket.on("message", (data, binary) => this.frames.push(binary ? data : JSON.parse(data.toString())));
    const closed = once(this.socket, "close").then(([code, reason]) => ({ code, reason: reason.toString() }));
    // A test that does not await the end must not fail by it.
    closed.catch(() => {});
    this.#closed = closed;
    t.after(() => this.socket.terminate());
  }

  closed(ms) {
    return within("the end of the connection", this.#closed, ms);
  }

  send(event, data) {
    this.socket.send(JSON.stringify({ event, data }));
  }

  frame(event, channel) {
    const what = channel === undefined ? event : `${event} of ${channel}`;
    return this.frames.first(what, (frame) => frame.event === event && (channel === undefined || frame.channel === channel));
  }

  async established() {
    const { data } = await this.frame("pusher:connection_established");
    return JSON.parse(data);
  }

  async subscribe(channel) {
    this.send("pusher:subscribe", { channel });
    await this.frame("pusher_internal:subscription_succeeded", channel);
  }

  /** Resolves when the server has handled everything sent before. */
  async roundTrip() {
    const pongs = (frames) => frames.filter(({ event }) => event === "pusher:pong").length;
    const before = pongs(this.frames.items);
    this.send("pusher:ping", {});
    await this.frames.when("pusher:pong", (frames) => pongs(frames) > before);
  }
}

/** A connection to a server, and the event that says that it is there. */
export function dial(at) {
  const { hostname: host } = at;
  if (!isTls(at)) return [connectTo(Number(at.port) || 80, host), "connect"];
  const servername = isIP(host) ? undefined : host;
  return [tls.connect({ host, port: Number(at.port) || 443, servername }), "secureConnect"];
}

/** A way to the server that counts connections and can cut them; without TLS at its near end. */
export async function gate(t) {
  const open = new Set();
  const passed = new Inbox();
  const listener = createServer((near) => {
    const [far] = dial(server);
    passed.push(near);
    open.add(near);
    // Servers that are told apart by their names are called by theirs.
    near.once("data", (head) => {
      far.write(head.toString("latin1").replace(/^(host: *)\S*/im, `$1${server.host}`), "latin1");
      near.pipe(far);
    });
    far.pipe(near);
    for (const [from, to] of [[near, far], [far, near]]) {
      from.on("error", () => to.destroy());
      from.on("close", () => to.destroy());
    }
    near.on("close", () => open.delete(near));
  });
  listener.listen(0, "127.0.0.1");
  await once(listener, "listening");
  const cut = () => open.forEach((near) => near.destroy());
  t.after(() => {
    cut();
    listener.close();
  });
  return { at: new URL(`http://127.0.0.1:${listener.address().port}`), passed, cut };
}
