// docs/examples/pusher-resume.js with pusher-js, over connections that break.

import assert from "node:assert/strict";
import { test } from "node:test";
import { resume } from "../../docs/examples/pusher-resume.js";
import { Inbox, RawClient, bound, channelName, gate, publisher, pusherClient, subscribe } from "./support.mjs";

/** A client that resumes, behind a gate that can be cut, with what a channel's handlers get. */
async function resuming(t, name = channelName()) {
  const { at, cut } = await gate(t);
  const { client } = pusherClient(t, { at });
  resume(client);
  const channel = await subscribe(client, name);
  const events = new Inbox();
  channel.bind_global((event, data) => {
    if (!event.startsWith("pusher:")) events.push({ event, data });
  });
  /** Publishes while the client is away; what it is told when it is back. */
  const miss = async (publish) => {
    client.disconnect();
    await publish();
    const back = bound(channel, "pusher:subscription_succeeded");
    client.connect();
    return await back;
  };
  return { client, channel, name, events, cut, miss };
}

const data = (events) => events.items.map(({ data }) => data);

test("[P90] what was published while the connection was away comes, in order and once", async (t) => {
  const { name, events, miss } = await resuming(t);
  await publisher().trigger(name, "e", "1");
  await events.when("1", (all) => all.length >= 1);
  const ack = await miss(async () => {
    for (const text of ["2", "3", "4"]) await publisher().trigger(name, "e", text);
  });
  assert.equal(ack.recovered, true);
  await publisher().trigger(name, "e", "5");
  await events.when("5", (all) => all.length >= 5);
  assert.deepEqual(data(events), [1, 2, 3, 4, 5], "pusher-js parses data that is JSON");
});

test("[P90] a connection that breaks is resumed, too", async (t) => {
  const { channel, name, events, cut } = await resuming(t);
  await publisher().trigger(name, "e", "1");
  await events.when("1", (all) => all.length >= 1);
  const back = bound(channel, "pusher:subscription_succeeded");
  cut();
  await publisher().trigger(name, "e", "2");
  assert.equal((await back).recovered, true);
  await publisher().trigger(name, "e", "3");
  await events.when("3", (all) => all.length >= 3);
  assert.deepEqual(data(events), [1, 2, 3]);
});

test("[P90] who missed nothing gets nothing twice", async (t) => {
  const { name, events, miss } = await resuming(t);
  await publisher().trigger(name, "e", "1");
  await events.when("1", (all) => all.length >= 1);
  const ack = await miss(async () => {});
  assert.equal(ack.recovered, true);
  await publisher().trigger(name, "e", "2");
  await events.when("2", (all) => all.length >= 2);
  assert.deepEqual(data(events), [1, 2]);
});

test("[P91] what is gone is told to the channel's handlers", async (t) => {
  const { name, events, miss } = await resuming(t);
  await publisher().trigger(name, "e", "1");
  await events.when("1", (all) => all.length >= 1);
  const ack = await miss(async () => {
    // More than the 256 that a channel keeps.
    for (let n = 0; n < 300; n += 10) {
      await Promise.all(Array.from({ length: 10 }, (_, i) => publisher().trigger(name, "e", `${n + i}`)));
    }
  });
  assert.equal(ack.recovered, false);
  const gap = await events.first("the gap", ({ event }) => event === "dunlin:gap");
  assert.equal(gap.data.reason, "expired");
  assert.equal(gap.data.channel, name);
  await publisher().trigger(name, "e", "after");
  await events.first("after", ({ data }) => data === "after");
  assert.equal(events.items.length, 3, "1, the gap, after");
});

test("[P90] a publisher that excludes itself is not given its own event when it comes back", async (t) => {
  const { client, name, events, miss } = await resuming(t);
  const other = new RawClient(t);
  await other.established();
  await other.subscribe(name);
  const moved = new Inbox();
  client.bind("dunlin:position", (position) => moved.push(position));
  await publisher().trigger(name, "own", "x", { socket_id: client.connection.socket_id });
  await other.frame("own", name);
  await publisher().trigger(name, "e", "1");
  await events.when("1", (all) => all.length >= 1);
  await publisher().trigger(name, "own too", "x", { socket_id: client.connection.socket_id });
  await other.frame("own too", name);
  await moved.when("its new position", (all) => all.some(({ offset }) => offset === 3));
  await miss(async () => {});
  await publisher().trigger(name, "e", "2");
  await events.when("2", (all) => all.length >= 2);
  assert.deepEqual(data(events), [1, 2]);
});

test("[P90] a channel that was left begins anew", async (t) => {
  const { client, channel, name, events } = await resuming(t);
  await publisher().trigger(name, "e", "1");
  await events.when("1", (all) => all.length >= 1);
  client.unsubscribe(name);
  await publisher().trigger(name, "e", "2");
  const again = client.subscribe(name);
  const ack = await bound(again, "pusher:subscription_succeeded");
  assert.equal(ack.recovered, undefined);
  assert.equal(ack.position.offset, 2);
  assert.equal(channel.subscribed, false);
});
