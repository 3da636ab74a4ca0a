// Laravel Echo, as a Laravel application's pages use it, with events as Laravel's
// broadcaster publishes them. Clients are at different gateways, if DUNLIN_URLS names
// several.

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import Echo from "laravel-echo";
import Pusher from "pusher-js";
import { Inbox, app, channelName, documented, gateways, publisher, reach, within } from "./support.mjs";

/** What Laravel's backend has for encrypted channels. */
const encryptionMasterKeyBase64 = randomBytes(32).toString("base64");
const laravel = publisher({ encryptionMasterKeyBase64 });

/** Publishes as Laravel's broadcaster does: one event, JSON, perhaps not to its sender. */
const broadcast = (channel, event, payload, socket_id) => laravel.trigger(channel, event, payload, { socket_id });

/** A page of a user, with the settings of `resources/js/echo.js`. */
function page(t, number, user, secret = app.secret) {
  const echo = new Echo({
    broadcaster: "pusher",
    Pusher,
    key: app.key,
    ...reach(gateways[number % gateways.length]),
    authorizer: ({ name }) => ({
      authorize: (socketId, callback) => {
        const data = user && name.startsWith("presence-") ? { user_id: String(user.id), user_info: user } : undefined;
        const backend = secret === app.secret ? laravel : publisher({ secret });
        callback(null, backend.authorizeChannel(socketId, name, data));
      },
    }),
  });
  t.after(() => echo.disconnect());
  return echo;
}

/** Waits until a channel is subscribed to. What happened before is not told again: ask at once, of several together. */
const subscribed = (channel) => within("the subscription", new Promise((resolve) => channel.subscribed(resolve)));

/** What a listener is handed, in order. */
function heard(channel, ...events) {
  const inbox = new Inbox();
  for (const event of events) channel.listen(event, (payload) => inbox.push({ event, ...payload }));
  return inbox;
}

test("the documented settings of a page are right", async (t) => {
  const [example, ...more] = documented("js", "laravel");
  assert.equal(more.length, 0);
  const echo = new Function("Echo", "Pusher", `${example}; return echo`)(Echo, Pusher);
  t.after(() => echo.disconnect());
  const name = channelName();
  const channel = echo.channel(name);
  const inbox = heard(channel, ".order.shipped");
  await subscribed(channel);
  await broadcast(name, "order.shipped", { order: { id: 3 } });
  await inbox.first("it", ({ order }) => order.id === 3);
});

test("[P19] events are heard by class name and by name of their own", async (t) => {
  const name = channelName();
  const channel = page(t, 0).channel(name);
  const inbox = heard(channel, "OrderShipped", ".order.shipped");
  await subscribed(channel);
  await broadcast(name, "App\\Events\\OrderShipped", { order: { id: 1, title: "żółw" } });
  await broadcast(name, "order.shipped", { order: { id: 2 } });
  await inbox.when("both", ({ length }) => length === 2);
  assert.deepEqual(inbox.items, [
    { event: "OrderShipped", order: { id: 1, title: "żółw" } },
    { event: ".order.shipped", order: { id: 2 } },
  ]);
});

test("[P14 P16] broadcast(…)->toOthers() leaves out the page that caused it", async (t) => {
  const name = channelName();
  const [own, other] = [0, 1].map((number) => page(t, number));
  const inboxes = [];
  for (const echo of [own, other]) {
    const channel = echo.private(name);
    inboxes.push(heard(channel, "Changed"));
    await subscribed(channel);
  }
  await broadcast(`private-${name}`, "App\\Events\\Changed", { n: 1 }, own.socketId());
  await broadcast(`private-${name}`, "App\\Events\\Changed", { n: 2 });
  for (const inbox of inboxes) await inbox.first("the second", ({ n }) => n === 2);
  assert.deepEqual(inboxes.map(({ items }) => items.map(({ n }) => n)), [[2], [1, 2]]);
});

test("[P19] notifications of a user are heard", async (t) => {
  const name = `App.Models.User.${channelName()}`;
  const channel = page(t, 0).private(name);
  const inbox = new Inbox();
  channel.notification((notification) => inbox.push(notification));
  await subscribed(channel);
  const notification = { id: "1", type: "App\\Notifications\\InvoicePaid", amount: 7 };
  await broadcast(`private-${name}`, "Illuminate\\Notifications\\Events\\BroadcastNotificationCreated", notification);
  assert.deepEqual(await inbox.first("it", () => true), notification);
});

test("[P23 P24] here, joining and leaving say who is in a room", async (t) => {
  const room = channelName();
  const told = [0, 1].map(() => new Inbox());
  const join = (number, user) => {
    const echo = page(t, number, user);
    const channel = echo.join(room);
    channel
      .here((users) => told[number].push(["here", users.map(({ name }) => name).sort()]))
      .joining(({ name }) => told[number].push(["joining", name]))
      .leaving(({ name }) => told[number].push(["leaving", name]));
    return { echo, channel };
  };
  join(0, { id: 1, name: "Ann" });
  await told[0].first("Ann", ([what]) => what === "here");
  const { echo } = join(1, { id: 2, name: "Bob" });
  await told[1].first("Bob", ([what]) => what === "here");
  await told[0].first("Bob", ([what]) => what === "joining");
  echo.leave(room);
  await told[0].first("Bob's end", ([what]) => what === "leaving");
  assert.deepEqual(told[0].items, [["here", ["Ann"]], ["joining", "Bob"], ["leaving", "Bob"]]);
  assert.deepEqual(told[1].items, [["here", ["Ann", "Bob"]]]);
});

test("[P30] whispers are heard by the others, and not by who whispers", async (t) => {
  const room = channelName();
  const inboxes = [0, 1].map(() => new Inbox());
  const channels = [0, 1].map((number) => {
    const channel = page(t, number, { id: number, name: `${number}` }).join(room);
    channel.listenForWhisper("typing", (payload) => inboxes[number].push(payload));
    return channel;
  });
  await Promise.all(channels.map(subscribed));
  channels[0].whisper("typing", { name: "Ann" });
  assert.deepEqual(await inboxes[1].first("the whisper", () => true), { name: "Ann" });
  channels[1].whisper("typing", { name: "Bob" });
  assert.deepEqual(await inboxes[0].first("the answer", () => true), { name: "Bob" });
  assert.equal(inboxes[1].items.length, 1);
});

test("[P20] events of an encrypted channel are read by the page alone", async (t) => {
  const name = channelName();
  const channel = page(t, 1).encryptedPrivate(name);
  const inbox = heard(channel, "Secret");
  await subscribed(channel);
  await broadcast(`private-encrypted-${name}`, "App\\Events\\Secret", { text: "psst" });
  assert.deepEqual(await inbox.first("it", () => true), { event: "Secret", text: "psst" });
});

test("[P17] a channel that is not allowed is an error, and the page goes on", async (t) => {
  const echo = page(t, 0, undefined, "another secret");
  const refused = echo.private(channelName());
  const error = await within("the refusal", new Promise((resolve) => refused.error(resolve)));
  assert.equal(error.status, 401);
  await subscribed(echo.channel(channelName()));
});

test("[P10] a page that leaves a channel hears no more of it", async (t) => {
  const names = [channelName(), channelName()];
  const echo = page(t, 1);
  const [left, kept] = names.map((name) => echo.channel(name));
  const [before, after] = [left, kept].map((channel) => heard(channel, "Changed"));
  await Promise.all([left, kept].map(subscribed));
  await broadcast(names[0], "App\\Events\\Changed", { n: 1 });
  await before.first("it", () => true);
  echo.leaveChannel(names[0]);
  // Frames of a connection are handled in order: this one tells that it is done.
  await subscribed(echo.channel(channelName()));
  await broadcast(names[0], "App\\Events\\Changed", { n: 2 });
  await broadcast(names[1], "App\\Events\\Changed", { n: 3 });
  await after.first("the marker", ({ n }) => n === 3);
  assert.deepEqual(before.items.map(({ n }) => n), [1]);
});
