// Presence channels with pusher-js and the server SDK. Members are at different
// gateways, if DUNLIN_URLS names several.

import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { resume } from "../../docs/examples/pusher-resume.js";
import { Inbox, RawClient, bound, channelName, gate, gateways, publisher, pusherClient, signature, within } from "./support.mjs";

/** A client of one user, at one of the gateways. */
function userClient(t, number, user, options = {}) {
  const channelAuthorization = {
    customHandler: ({ socketId, channelName: channel }, callback) => {
      const channelData = JSON.stringify(user);
      callback(null, { auth: signature(socketId, channel, { channelData }), channel_data: channelData });
    },
  };
  return pusherClient(t, { at: gateways[number % gateways.length], channelAuthorization, ...options }).client;
}

/** Joins a channel, and keeps what is told of members. */
async function join(client, name) {
  const channel = client.subscribe(name);
  const changes = new Inbox();
  channel.bind("pusher:member_added", ({ id }) => changes.push(`+${id}`));
  channel.bind("pusher:member_removed", ({ id }) => changes.push(`-${id}`));
  // Taken at once: pusher-js goes on changing what it hands over.
  const told = new Promise((resolve) => {
    channel.bind("pusher:subscription_succeeded", (members) => {
      resolve({ members, ids: Object.keys(members.members).sort(), count: members.count });
    });
  });
  const { members, ids, count } = await within("the acknowledgement", told);
  assert.equal(count, ids.length);
  return { channel, changes, ids, members };
}

/** What the HTTP API says of a channel's users. */
async function users(name) {
  const answer = await publisher().get({ path: `/channels/${name}/users` });
  assert.equal(answer.status, 200);
  const { users } = await answer.json();
  return users.map(({ id }) => id).sort();
}

async function eventually(what, look) {
  const until = Date.now() + 10_000;
  for (;;) {
    const answer = await look();
    if (answer) return answer;
    if (Date.now() > until) throw new Error(`waited for ${what}`);
    await sleep(20);
  }
}

test("[P23 P24] members are told of each other, once, in order", async (t) => {
  const name = channelName("presence-");
  const alice = userClient(t, 0, { user_id: "alice", user_info: { name: "Alice" } });
  const first = await join(alice, name);
  assert.deepEqual(first.ids, ["alice"]);
  assert.deepEqual(first.members.me, { id: "alice", info: { name: "Alice" } });
  assert.deepEqual(await users(name), ["alice"]);
  const bob = userClient(t, 1, { user_id: 7 });
  const second = await join(bob, name);
  assert.deepEqual(second.ids, ["7", "alice"]);
  assert.deepEqual(second.members.get("alice").info, { name: "Alice" });
  await first.changes.first("bob", (change) => change === "+7");
  assert.deepEqual(await users(name), ["7", "alice"]);
  bob.unsubscribe(name);
  await first.changes.first("bob's end", (change) => change === "-7");
  assert.deepEqual(await users(name), ["alice"]);
  assert.deepEqual(first.changes.items, ["+7", "-7"]);
  assert.deepEqual(second.changes.items, []);
});

test("[P25] a user with two connections comes once and goes with the last", async (t) => {
  const name = channelName("presence-");
  const watcher = await join(userClient(t, 0, { user_id: "watcher" }), name);
  const one = userClient(t, 0, { user_id: "twin" });
  const two = userClient(t, 1, { user_id: "twin" });
  await join(one, name);
  assert.deepEqual((await join(two, name)).ids, ["twin", "watcher"]);
  one.unsubscribe(name);
  const last = await join(userClient(t, 1, { user_id: "last" }), name);
  assert.deepEqual(last.ids, ["last", "twin", "watcher"]);
  two.unsubscribe(name);
  await watcher.changes.first("the end of both", (change) => change === "-twin");
  assert.deepEqual(watcher.changes.items, ["+twin", "+last", "-twin"]);
});

test("[P26] a lost connection leaves after a moment, one that comes back does not", async (t) => {
  const name = channelName("presence-");
  const watcher = await join(userClient(t, 1, { user_id: "watcher" }), name);
  const { at, cut } = await gate(t);
  const back = userClient(t, 0, { user_id: "back" }, { at });
  const { channel } = await join(back, name);
  const again = bound(channel, "pusher:subscription_succeeded");
  cut();
  // pusher-js connects again after a second at most; whoever is faster is not missed.
  back.connect();
  await again;
  const gone = userClient(t, 0, { user_id: "gone" });
  await join(gone, name);
  const since = Date.now();
  gone.disconnect();
  await watcher.changes.first("the end", (change) => change === "-gone");
  const took = Date.now() - since;
  assert.ok(took >= 900, `left after ${took} ms`);
  assert.ok(!(await users(name)).includes("gone"));
});

test("[P30 P31] events of clients say whose they are", async (t) => {
  const name = channelName("presence-");
  const one = await join(userClient(t, 0, { user_id: "one" }), name);
  const two = await join(userClient(t, 1, { user_id: "two" }), name);
  const typing = within("typing", new Promise((resolve) => {
    two.channel.bind("client-typing", (data, metadata) => resolve([data, metadata]));
  }));
  assert.ok(one.channel.trigger("client-typing", { on: true }));
  assert.deepEqual(await typing, [{ on: true }, { user_id: "one" }]);
  // Those of backends say nothing of users.
  const news = within("news", new Promise((resolve) => {
    two.channel.bind("news", (data, metadata) => resolve([data, metadata]));
  }));
  await publisher().trigger(name, "news", { n: 1 });
  const [data, metadata] = await news;
  assert.deepEqual(data, { n: 1 });
  assert.equal(metadata?.user_id, undefined);
});

test("[P27] whoever comes while others come and go is told of everybody", async (t) => {
  const name = channelName("presence-");
  const ids = Array.from({ length: 30 }, (_, number) => `u${String(number).padStart(2, "0")}`);
  const all = await Promise.all(ids.map((id, number) => join(userClient(t, number, { user_id: id }), name)));
  const view = ({ members }) => Object.keys(members.members).sort().join();
  await eventually("all to know all", () => all.every((one) => view(one) === ids.join()));
  assert.deepEqual(await users(name), ids);
  for (const { ids: told, changes } of all) {
    const added = changes.items.map((change) => change.slice(1));
    assert.deepEqual([...told, ...added].sort(), ids, "each is told of once");
  }
});

test("[P28] what is no user is refused, and says why", async (t) => {
  const name = channelName("presence-");
  for (const [user, word] of [
    [{}, "user_id"],
    [{ user_id: "" }, "empty"],
    [{ user_id: "x".repeat(129) }, "129"],
    [{ user_id: "a", user_info: "x".repeat(3_000) }, "user_info"],
  ]) {
    const client = userClient(t, 0, user);
    const error = await bound(client.subscribe(name), "pusher:subscription_error");
    assert.equal(error.type, "InvalidUser");
    assert.match(error.error, new RegExp(word));
    client.disconnect();
  }
  assert.deepEqual(await users(name), []);
});

test("[P23 P29] to join twice is an error, and changes nothing", async (t) => {
  const name = channelName("presence-");
  const raw = new RawClient(t);
  const { socket_id: id } = await raw.established();
  const channelData = JSON.stringify({ user_id: "u" });
  const data = { channel: name, auth: signature(id, name, { channelData }), channel_data: channelData };
  raw.send("pusher:subscribe", data);
  const { data: told } = await raw.frame("pusher_internal:subscription_succeeded", name);
  assert.deepEqual(JSON.parse(told), { presence: { count: 1, ids: ["u"], hash: { u: null } } });
  raw.send("pusher:subscribe", data);
  const { data: error } = await raw.frame("pusher:error");
  assert.match(error.message, /Existing subscription/);
  assert.deepEqual(await users(name), ["u"]);
});

test("[P60 P61] users are asked of presence channels only", async () => {
  const refused = await publisher().get({ path: "/channels/room/users" }).catch((error) => error);
  assert.equal(refused.status, 400);
  const absent = channelName("presence-");
  assert.deepEqual(await users(absent), []);
  const answer = await publisher().get({ path: `/channels/${absent}`, params: { info: "user_count" } });
  const told = await answer.json();
  assert.deepEqual([told.occupied, told.user_count], [false, 0]);
  const wrong = await publisher().get({ path: "/channels/room", params: { info: "user_count" } }).catch((error) => error);
  assert.equal(wrong.status, 400);
});

test("[P91] a member that comes back with a position is told that what it missed is missing", async (t) => {
  const name = channelName("presence-");
  const raw = new RawClient(t);
  const { socket_id: id } = await raw.established();
  const channelData = JSON.stringify({ user_id: "u" });
  const auth = signature(id, name, { channelData });
  const recover = { epoch: "00000000000000ab", offset: 7 };
  raw.send("pusher:subscribe", { channel: name, auth, channel_data: channelData, recover });
  const { data } = await raw.frame("pusher_internal:subscription_succeeded", name);
  const told = JSON.parse(data);
  assert.equal(told.recovered, false);
  assert.equal(told.presence.count, 1);
  const gap = JSON.parse((await raw.frame("dunlin:gap")).data);
  assert.deepEqual([gap.channel, gap.latest], [name, `${told.position.epoch}-${told.position.offset}`]);
});

test("[P90] a member that comes back gets the list, and what it missed of all but that", async (t) => {
  const name = channelName("presence-");
  const alice = userClient(t, 0, { user_id: "alice" });
  resume(alice);
  const acknowledgements = new Inbox();
  alice.connection.bind("message", ({ event, data }) => {
    if (event === "pusher_internal:subscription_succeeded") acknowledgements.push(data);
  });
  const { channel, changes } = await join(alice, name);
  const events = new Inbox();
  channel.bind_global((event, data) => {
    if (!event.startsWith("pusher:")) events.push(data);
  });
  const bob = await join(userClient(t, 1, { user_id: "bob" }), name);
  await changes.when("bob", (all) => all.includes("+bob"));
  await publisher().trigger(name, "e", "1");
  await events.when("1", (all) => all.length >= 1);

  alice.disconnect();
  await publisher().trigger(name, "e", "2");
  await bob.changes.when("alice goes", (all) => all.includes("-alice"));
  await publisher().trigger(name, "e", "3");
  await join(userClient(t, 2, { user_id: "carol" }), name);
  await publisher().trigger(name, "e", "4");
  const back = bound(channel, "pusher:subscription_succeeded");
  alice.connect();
  const members = await back;
  assert.deepEqual(Object.keys(members.members).sort(), ["alice", "bob", "carol"]);
  await publisher().trigger(name, "e", "5");
  await events.when("5", (all) => all.length >= 5);
  assert.deepEqual(events.items, [1, 2, 3, 4, 5]);
  assert.deepEqual(acknowledgements.items.map(({ recovered }) => recovered), [undefined, true]);
  assert.deepEqual(changes.items, ["+bob"], "nobody but who the list tells of");

  // Once more, with nothing to miss but its own going and coming.
  alice.disconnect();
  const again = bound(channel, "pusher:subscription_succeeded");
  alice.connect();
  await again;
  bob.channel.unsubscribe();
  await changes.when("bob goes", (all) => all.includes("-bob"));
  await publisher().trigger(name, "e", "6");
  await events.when("6", (all) => all.length >= 6);
  assert.deepEqual(events.items, [1, 2, 3, 4, 5, 6]);
  assert.deepEqual(changes.items, ["+bob", "-bob"]);
});

test("[P91] a member that has missed more than its outbox takes is told of a gap, behind the list", async (t) => {
  const name = channelName("presence-");
  const alice = userClient(t, 0, { user_id: "alice" });
  resume(alice);
  const { channel } = await join(alice, name);
  const bob = await join(userClient(t, 0, { user_id: "bob" }), name);
  const first = bound(channel, "e");
  await publisher().trigger(name, "e", "1");
  await first;
  const got = new Inbox();
  channel.bind_global((event) => {
    if (!event.startsWith("pusher:")) got.push(event);
  });
  const heard = new Inbox();
  bob.channel.bind("large", (data) => heard.push(data.length));
  alice.disconnect();
  // Twice that is more than half of the outbox's megabyte; the gateway still has it all.
  for (let n = 0; n < 30; n += 1) await publisher().trigger(name, "large", "x".repeat(9_500));
  await heard.when("all of it", (all) => all.length >= 30);
  const back = bound(channel, "pusher:subscription_succeeded");
  alice.connect();
  assert.equal((await back).count, 2);
  await publisher().trigger(name, "e", "2");
  await got.when("2", (all) => all.includes("e"));
  assert.deepEqual(got.items, ["dunlin:gap", "e"]);
});
