// pusher-js, the client library of browsers, against the server.

import assert from "node:assert/strict";
import { once } from "node:events";
import http from "node:http";
import https from "node:https";
import { test } from "node:test";
import { WebSocketServer } from "ws";
import { Inbox, RawClient, app, bound, channelName, gate, publisher, pusherClient, server, signature, subscribe, within } from "./support.mjs";

/** Authorises as a backend does, or wrongly with another secret. */
function authorization({ secret, channelData } = {}) {
  return {
    customHandler: ({ socketId, channelName: channel }, callback) => {
      callback(null, { auth: signature(socketId, channel, { secret, channelData }), channel_data: channelData });
    },
  };
}

test("[P1] connects and gets a socket id", async (t) => {
  const { client } = pusherClient(t);
  await bound(client.connection, "connected");
  assert.match(client.connection.socket_id, /^\d+\.\d+$/);
});

test("[P12] a public channel delivers data byte for byte", async (t) => {
  const { client, frames } = pusherClient(t);
  const name = channelName();
  const channel = await subscribe(client, name);
  const texts = [
    "plain",
    "",
    "line\nbreak\r\n\ttab \\ \" / \u2028 \u007f",
    "\u{1F426} żółw नमस्ते",
    '{ "spaces":  [1, 2.50, 1e3],"nested":"{\\"a\\":1}" }',
    "x".repeat(50_000),
  ];
  for (const [number, text] of texts.entries()) {
    await publisher().trigger(name, `event-${number}`, text);
    await frames.first(`event-${number}`, ({ event }) => event === `event-${number}`);
  }
  // pusher-js parses data that is JSON, so bytes are compared on the wire.
  const raw = new RawClient(t);
  await raw.established();
  await raw.subscribe(name);
  const all = new Inbox();
  channel.bind_global((event, data) => all.push({ event, data }));
  for (const [number, text] of texts.entries()) {
    await publisher().trigger(name, `again-${number}`, text);
    assert.equal((await raw.frame(`again-${number}`, name)).data, text);
    const { data } = await all.first(`again-${number}`, ({ event }) => event === `again-${number}`);
    assert.deepEqual(data, number === 4 ? JSON.parse(text) : text);
  }
});

test("[P16] a private channel is open to the right signature", async (t) => {
  const { client } = pusherClient(t, { channelAuthorization: authorization() });
  const name = channelName("private-");
  const channel = await subscribe(client, name);
  const news = bound(channel, "news");
  await publisher().trigger(name, "news", { n: 1 });
  assert.deepEqual(await news, { n: 1 });
});

test("[P17] a wrong signature is a subscription error, and the connection stays", async (t) => {
  const { client } = pusherClient(t, { channelAuthorization: authorization({ secret: "wrong" }) });
  const name = channelName("private-");
  const error = await bound(client.subscribe(name), "pusher:subscription_error");
  assert.equal(error.status, 401);
  assert.equal(error.type, "AuthError");
  assert.match(error.error, /./);
  await subscribe(client, channelName());
  assert.equal(client.connection.state, "connected");
});

test("[P10] nothing is delivered after unsubscribing", async (t) => {
  const { client, frames } = pusherClient(t);
  const [left, kept] = [channelName(), channelName()];
  await subscribe(client, left);
  const marker = bound(await subscribe(client, kept), "marker");
  const witness = new RawClient(t);
  await witness.established();
  await witness.subscribe(left);

  client.unsubscribe(left);
  // Frames of a connection are handled in order: this one tells that it is done.
  await subscribe(client, channelName());
  await publisher().trigger(left, "late", "x");
  await witness.frame("late", left);
  await publisher().trigger(kept, "marker", "x");
  await marker;
  assert.deepEqual(frames.items.filter(({ event }) => event === "late"), []);
});

test("[P14] a publisher's own socket is left out, others are not", async (t) => {
  const name = channelName();
  const [own, other] = [pusherClient(t), pusherClient(t)];
  await Promise.all([subscribe(own.client, name), subscribe(other.client, name)]);
  await publisher().trigger(name, "from-own", "x", { socket_id: own.client.connection.socket_id });
  await publisher().trigger(name, "marker", "x");
  const events = ({ items }) => items.filter(({ channel, event }) => channel === name && !event.startsWith("pusher")).map(({ event }) => event);
  for (const { frames } of [own, other]) await frames.first("marker", ({ event }) => event === "marker");
  assert.deepEqual(events(own.frames), ["marker"]);
  assert.deepEqual(events(other.frames), ["from-own", "marker"]);
});

test("[P11] an event goes to the channel it was published to", async (t) => {
  const { client, frames } = pusherClient(t);
  const names = [channelName(), channelName()];
  for (const name of names) await subscribe(client, name);
  await publisher().trigger(names[0], "e", "for 0");
  await publisher().trigger(names[1], "e", "for 1");
  const came = await frames.when("both events", (all) => {
    const events = all.filter(({ event }) => event === "e");
    return events.length === 2 && events;
  });
  const byChannel = Object.fromEntries(came.map(({ channel, data }) => [channel, data]));
  assert.deepEqual(byChannel, { [names[0]]: "for 0", [names[1]]: "for 1" });
});

test("[P65] an unknown key ends it: error 4001 and no further attempt", async (t) => {
  const { at, passed } = await gate(t);
  // Another client, which is turned away in a way that means "try again", shows
  // that the time in which pusher-js would have done so has passed.
  const control = new Inbox();
  const stub = http.createServer().listen(0, "127.0.0.1");
  await once(stub, "listening");
  new WebSocketServer({ server: stub }).on("connection", (socket) => {
    control.push(socket);
    socket.close(4100);
  });
  t.after(() => {
    stub.close();
    stub.closeAllConnections();
  });

  const { client } = pusherClient(t, { key: "no-such-key", at });
  const states = new Inbox();
  client.connection.bind("state_change", ({ current }) => states.push(current));
  const { error } = await bound(client.connection, "error");
  assert.equal(error.data.code, 4001);
  // `disconnected` is where pusher-js goes when it is told not to come back.
  await states.when("the final state", (all) => ["disconnected", "failed", "unavailable"].includes(all.at(-1)));

  pusherClient(t, { at: new URL(`http://127.0.0.1:${stub.address().port}`) });
  await control.when("a second attempt of the other client", (all) => all.length >= 2);
  assert.equal(passed.items.length, 1);
  assert.notEqual(states.items.at(-1), "connecting");
});

test("[P7] after a lost connection it is back with its subscriptions", async (t) => {
  const { at, cut } = await gate(t);
  const { client } = pusherClient(t, { at });
  const name = channelName();
  const channel = await subscribe(client, name);
  const before = client.connection.socket_id;
  const again = bound(channel, "pusher:subscription_succeeded");
  cut();
  await again;
  assert.notEqual(client.connection.socket_id, before);
  const event = bound(channel, "e");
  await publisher().trigger(name, "e", "x");
  assert.equal(await event, "x");
});

test("[P4] pings are answered, so an idle client stays", async (t) => {
  const { client, frames } = pusherClient(t, { activityTimeout: 100, pongTimeout: 2_000 });
  await bound(client.connection, "connected");
  const before = client.connection.socket_id;
  await frames.when("three pongs", (all) => all.filter(({ event }) => event === "pusher:pong").length >= 3);
  assert.equal(client.connection.state, "connected");
  assert.equal(client.connection.socket_id, before);
});

test("[P13] concurrent publications: none lost, none twice, one order for all", { timeout: 120_000 }, async (t) => {
  const [subscribers, rounds, concurrent] = [50, 500, 10];
  const channels = Array.from({ length: 5 }, () => channelName());
  const perChannel = (rounds * concurrent) / channels.length;
  /** For every subscriber, what it got in each channel. */
  const got = Array.from({ length: subscribers }, () => new Map(channels.map((name) => [name, []])));
  const complete = got.map((mine) => {
    let missing = rounds * concurrent;
    let resolve;
    const all = new Promise((done) => (resolve = done));
    const take = ({ event, channel, data }) => {
      if (event !== "n") return;
      mine.get(channel).push(data);
      if (--missing === 0) resolve();
    };
    return { take, all, missing: () => missing };
  });

  await Promise.all(complete.map(async ({ take }, number) => {
    if (number < 2) {
      const { client } = pusherClient(t);
      client.connection.bind("message", take);
      return Promise.all(channels.map((name) => subscribe(client, name)));
    }
    const raw = new RawClient(t);
    await raw.established();
    await Promise.all(channels.map((name) => raw.subscribe(name)));
    // From here on only counted: the inbox would look through all of it each time.
    raw.socket.removeAllListeners("message");
    raw.socket.on("message", (data) => take(JSON.parse(data.toString())));
  }));

  const { Agent } = server.protocol === "https:" ? https : http;
  const agent = new Agent({ keepAlive: true, maxSockets: concurrent });
  t.after(() => agent.destroy());
  const sdk = publisher({ agent });
  for (let round = 0; round < rounds; round += 1) {
    await Promise.all(Array.from({ length: concurrent }, (_, i) => sdk.trigger(channels[i % channels.length], "n", `${round}-${i}`)));
  }
  const waiting = Promise.all(complete.map(({ all }) => all));
  await within("all publications at all subscribers", waiting, 30_000).catch((error) => {
    throw new Error(`${error.message}; missing: ${complete.map(({ missing }) => missing())}`);
  });
  // Anything twice would be here by now, or comes before the end of this.
  await Promise.all(channels.map((name) => sdk.trigger(name, "end", "x")));

  for (const name of channels) {
    const order = got[0].get(name);
    assert.equal(order.length, perChannel);
    assert.equal(new Set(order).size, perChannel, `duplicates in ${name}`);
    const turns = order.map((data) => Number.parseInt(data, 10));
    assert.deepEqual(turns, turns.toSorted((a, b) => a - b), "what was acknowledged earlier comes earlier");
    for (const mine of got) assert.deepEqual(mine.get(name), order);
  }
});
