// Cache channels with pusher-js, EventSource and the server SDK; subscribers are at
// different gateways, if DUNLIN_URLS names several.

import assert from "node:assert/strict";
import { test } from "node:test";
import { EventSource } from "eventsource";
import { RawClient, app, bound, channelName, gateways, publisher, pusherClient, signature, within } from "./support.mjs";

/** A pusher-js client at one of the gateways, and every frame of one channel, in order. */
function subscriber(t, number, name, options = {}) {
  const { client, frames } = pusherClient(t, { at: gateways[number % gateways.length], ...options });
  const channel = client.subscribe(name);
  return {
    client,
    channel,
    heard: () => frames.items.filter((frame) => frame.channel === name).map(({ event }) => event),
    until: (event) => frames.first(event, (frame) => frame.channel === name && frame.event === event),
  };
}

const SUCCEEDED = "pusher_internal:subscription_succeeded";

const channelAuthorization = (user) => ({
  customHandler: ({ socketId, channelName: channel }, callback) => {
    const channelData = user === undefined ? undefined : JSON.stringify(user);
    callback(null, { auth: signature(socketId, channel, { channelData }), channel_data: channelData });
  },
});

/** What is kept, as the HTTP API says it. */
async function cached(name) {
  const answer = await publisher().get({ path: `/channels/${name}`, params: { info: "cache" } });
  assert.equal(answer.status, 200);
  return (await answer.json()).cache;
}

test("[P34 P37] who comes is told the last event, or that there is none", async (t) => {
  const name = channelName("cache-");
  const missed = subscriber(t, 0, name);
  await within("pusher:cache_miss", new Promise((resolve) => missed.channel.bind("pusher:cache_miss", resolve)));
  assert.deepEqual(missed.heard(), [SUCCEEDED, "pusher:cache_miss"]);
  assert.equal(await cached(name), undefined);

  for (const event of ["first", "second"]) await publisher().trigger(name, event, { event });
  await missed.until("second");
  for (const number of [0, 1]) {
    const later = subscriber(t, number, name);
    assert.deepEqual(await bound(later.channel, "second"), { event: "second" });
    assert.deepEqual(later.heard(), [SUCCEEDED, "second"]);
    await publisher().trigger(name, "second", { event: "second" });
    await later.until("second");
  }
  const { data, ttl } = await cached(name);
  assert.equal(data, '{"event":"second"}');
  assert.ok(ttl > 1_700 && ttl <= 1_800, `${ttl}`);
});

test("[P35] it is kept while nobody is there", async (t) => {
  const name = channelName("private-cache-");
  await publisher().trigger(name, "kept", "x");
  for (const number of [0, 1]) {
    const later = subscriber(t, number, name, { channelAuthorization: channelAuthorization() });
    await later.until("kept");
    assert.deepEqual(later.heard(), [SUCCEEDED, "kept"]);
    later.client.disconnect();
  }
});

test("[P36] events of clients are not kept", async (t) => {
  const name = channelName("private-cache-");
  const options = { channelAuthorization: channelAuthorization() };
  const [one, other] = [0, 1].map((number) => subscriber(t, number, name, options));
  await Promise.all([one, other].map(({ until }) => until("pusher:cache_miss")));
  one.channel.trigger("client-hello", {});
  await other.until("client-hello");
  const later = subscriber(t, 1, name, options);
  await later.until("pusher:cache_miss");
  assert.deepEqual(later.heard(), [SUCCEEDED, "pusher:cache_miss"]);
});

test("[P35 P36] members of a presence channel are told, too, and comings are not kept", async (t) => {
  const name = channelName("presence-cache-");
  const join = (number, user_id) => subscriber(t, number, name, { channelAuthorization: channelAuthorization({ user_id }) });
  const first = join(0, "a");
  await first.until("pusher:cache_miss");
  await publisher().trigger(name, "news", "x");
  await first.until("news");
  for (const [number, user] of ["b", "c"].entries()) {
    const later = join(number, user);
    await later.until("news");
    assert.deepEqual(later.heard(), [SUCCEEDED, "news"]);
  }
});

test("[P34 P82] an event stream begins with it, and a repeated acknowledgement does not", async (t) => {
  const name = channelName("cache-");
  await publisher().trigger(name, "news", "x");
  const url = new URL(`/app/${app.key}/sse?channel=${name}`, gateways[gateways.length - 1]);
  const source = new EventSource(url);
  t.after(() => source.close());
  const { data, lastEventId } = await within("news", new Promise((resolve) => source.addEventListener("news", resolve)));
  assert.equal(data, "x");
  assert.match(lastEventId, /^[0-9a-f]{16}-1$/);

  const raw = new RawClient(t);
  await raw.established();
  await raw.subscribe(name);
  await raw.frame("news", name);
  raw.send("pusher:subscribe", { channel: name });
  await raw.roundTrip();
  assert.equal(raw.frames.items.filter(({ event }) => event === "news").length, 1);
  assert.equal(raw.frames.items.filter(({ event }) => event === SUCCEEDED).length, 2);
});

test("[P37] what is no cache channel keeps nothing and is not asked", async (t) => {
  const name = channelName("mycache-");
  await publisher().trigger(name, "news", "x");
  const raw = new RawClient(t);
  await raw.established();
  await raw.subscribe(name);
  await raw.roundTrip();
  assert.deepEqual(raw.frames.items.filter(({ channel }) => channel === name).map(({ event }) => event), [SUCCEEDED]);
  const refused = await publisher().get({ path: `/channels/${name}`, params: { info: "cache" } }).catch((error) => error);
  assert.equal(refused.status, 400);
});
