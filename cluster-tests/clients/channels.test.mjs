// The list of channels by the HTTP API, with the server SDK; subscribers are at
// different gateways, if DUNLIN_URLS names several.

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { gateways, publisher, pusherClient, server, signature, subscribe } from "./support.mjs";

function clientAt(t, number, options = {}) {
  return pusherClient(t, { at: gateways[number % gateways.length], ...options }).client;
}

function member(t, number, user_id) {
  const customHandler = ({ socketId, channelName: channel }, callback) => {
    const channelData = JSON.stringify({ user_id });
    callback(null, { auth: signature(socketId, channel, { channelData }), channel_data: channelData });
  };
  return clientAt(t, number, { channelAuthorization: { customHandler } });
}

/** Names of channels that no other test uses begin so. */
const begin = (kind = "") => `${kind}list-${randomBytes(6).toString("hex")}-`;

/** How many milliseconds the server's clock may be away from this one. */
const APART = /^(127\.|localhost$)/.test(server.hostname) ? 1 : 60_000;

/** What is told, asked at any gateway. */
async function list(params, number = 0) {
  const answer = await publisher({ at: gateways[number % gateways.length] }).get({ path: "/channels", params });
  assert.equal(answer.status, 200);
  return answer.json();
}

/** The same, once a new cluster knows of all gateways who is there. */
async function whole(params, number) {
  for (let tries = 0; tries < 100; tries++) {
    const told = await list(params, number);
    if (told.complete) return told;
    await sleep(100);
  }
  throw new Error("it is not complete after ten seconds");
}

test("[P62] all channels in which somebody is are told of, wherever that is", async (t) => {
  const prefix = begin();
  const names = Array.from({ length: 40 }, (_, number) => `${prefix}${number}`);
  const clients = [0, 1].map((number) => clientAt(t, number));
  await Promise.all(names.map((name, number) => subscribe(clients[number % 2], name)));
  await subscribe(clients[0], begin());
  await publisher().trigger(`${prefix}nobody`, "e", "x");
  for (const number of [0, 1]) {
    const before = Date.now();
    const { channels, as_of, cursor } = await whole({ filter_by_prefix: prefix }, number);
    assert.deepEqual(Object.keys(channels).sort(), [...names].sort());
    assert.deepEqual(channels[names[0]], {});
    assert.ok(as_of >= before - APART && as_of <= Date.now() + APART, `${as_of}`);
    assert.equal(cursor, undefined);
  }
  const all = await whole({});
  for (const name of names) assert.ok(name in all.channels, name);
});

test("[P63] users of presence channels are counted", async (t) => {
  const prefix = begin("presence-");
  for (const [number, user] of ["a", "a", "b"].entries()) await subscribe(member(t, number, user), `${prefix}x`);
  await subscribe(member(t, 1, "c"), `${prefix}y`);
  const { channels } = await whole({ filter_by_prefix: prefix, info: "user_count" }, 1);
  assert.deepEqual(channels, { [`${prefix}x`]: { user_count: 2 }, [`${prefix}y`]: { user_count: 1 } });
});

test("[P89] pages have every channel once", async (t) => {
  const prefix = begin();
  const names = Array.from({ length: 25 }, (_, number) => `${prefix}${number}`);
  const client = clientAt(t, 0);
  await Promise.all(names.map((name) => subscribe(client, name)));
  await whole({ filter_by_prefix: prefix });
  const seen = [];
  let pages = 0;
  for (let cursor; pages === 0 || cursor !== undefined; pages++) {
    assert.ok(pages < 10);
    const page = await list({ filter_by_prefix: prefix, limit: 10, ...(cursor && { cursor }) }, pages);
    const told = Object.keys(page.channels);
    assert.ok(told.length <= 10);
    seen.push(...told);
    cursor = page.cursor;
  }
  assert.equal(pages, 3);
  assert.deepEqual(seen.sort(), [...names].sort());
});

test("[P64] what cannot be told is refused, and says why", async () => {
  const wrong = [
    [{ info: "user_count" }, /filter_by_prefix/],
    [{ info: "user_count", filter_by_prefix: "private-" }, /filter_by_prefix/],
    [{ info: "colour" }, /colour/],
    [{ info: "cache", filter_by_prefix: "cache-" }, /cache/],
    [{ limit: 0 }, /limit/],
    [{ limit: "many" }, /limit/],
    [{ cursor: "x" }, /cursor/],
    [{ cursor: "1:a b" }, /cursor/],
  ];
  for (const [params, word] of wrong) {
    const refused = await publisher().get({ path: "/channels", params }).catch((error) => error);
    assert.equal(refused.status, 400, JSON.stringify(params));
    assert.match(refused.body, word);
  }
});
