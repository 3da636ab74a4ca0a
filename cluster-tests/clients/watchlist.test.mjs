// Who is online, as pusher-js tells the pages of users that watch others; they are at
// different gateways, if DUNLIN_URLS names several.

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import { Inbox, RawClient, gateways, publisher, pusherClient, within } from "./support.mjs";

const userId = (name) => `${name}-${randomBytes(6).toString("hex")}`;

/** A page of a user who watches others; `news` are what it is told, in order. */
async function page(t, number, id, watchlist) {
  const customHandler = ({ socketId }, callback) => callback(null, publisher().authenticateUser(socketId, { id, watchlist }));
  const { client, frames } = pusherClient(t, { at: gateways[number % gateways.length], userAuthentication: { customHandler } });
  const news = new Inbox();
  for (const name of ["online", "offline"]) client.user.watchlist.bind(name, ({ user_ids }) => news.push([name, [...user_ids].sort()]));
  client.signin();
  await within("signin", client.user.signinDonePromise);
  return { client, frames, news };
}

const is = (name, id) => ([event, ids]) => event === name && ids.includes(id);

test("[P45 P46] whoever signs in is told who of the watched is online, in one piece, and then what changes", async (t) => {
  const [ann, bob, eve] = ["ann", "bob", "eve"].map(userId);
  const bobs = await page(t, 1, bob);
  const { news, frames } = await page(t, 0, ann, [bob, eve, ann]);
  await news.when("both lists", ({ length }) => length === 2);
  assert.deepEqual(news.items, [
    ["online", [ann, bob].sort()],
    ["offline", [eve]],
  ]);
  const told = () => frames.items.filter(({ event }) => event === "pusher_internal:watchlist_events").length;
  assert.equal(told(), 1);

  await page(t, 1, eve);
  await news.first("Eve", is("online", eve));
  bobs.client.disconnect();
  await news.first("Bob's end", is("offline", bob));
  assert.equal(news.items.length, 4, "each is told once");
});

test("[P46] a user is online from the first connection to the last, at whichever gateways", async (t) => {
  const [ann, bob, marker] = ["ann", "bob", "marker"].map(userId);
  const { news } = await page(t, 0, ann, [bob, marker]);
  await news.first("the lists", is("offline", bob));
  const twins = [await page(t, 0, bob), await page(t, 1, bob)];
  await news.first("Bob", is("online", bob));
  twins[0].client.disconnect();
  // Longer than a lost connection is waited for: what comes behind it says that nothing
  // came of that.
  await new Promise((resolve) => setTimeout(resolve, 1_500));
  await page(t, 1, marker);
  await news.first("the marker", is("online", marker));
  assert.ok(!news.items.slice(1).some(is("offline", bob)));
  twins[1].client.disconnect();
  await news.when("Bob's end", (all) => all.filter(is("offline", bob)).length === 2);
});

test("[P39 P42] those who watch hear nothing else of a user, and are not ended with it", async (t) => {
  const [ann, bob] = ["ann", "bob"].map(userId);
  const bobs = await page(t, 0, bob);
  const { client, frames, news } = await page(t, 1, ann, [bob]);
  await news.first("Bob", is("online", bob));
  const hello = new Promise((resolve) => bobs.client.user.bind("hello", resolve));
  await publisher().sendToUser(bob, "hello", "only you");
  await within("hello", hello);
  await publisher().terminateUserConnections(bob);
  await news.first("Bob's end", is("offline", bob));
  assert.equal(client.connection.state, "connected");
  assert.ok(!JSON.stringify(frames.items).includes("only you"));
});

test("[P47] a watchlist that is too long is an error, and nobody is watched", async (t) => {
  const ids = Array.from({ length: 101 }, (_, number) => userId(`${number}`));
  const raw = new RawClient(t);
  const { socket_id } = await raw.established();
  raw.send("pusher:signin", publisher().authenticateUser(socket_id, { id: userId("ann"), watchlist: ids }));
  const { data } = await raw.frame("pusher:error");
  assert.equal(data.code, 4302);
  await raw.frame("pusher:signin_success");
  await raw.roundTrip();
  assert.ok(!raw.frames.items.some(({ event }) => event === "pusher_internal:watchlist_events"));
});

test("[P45] a hundred users are watched", async (t) => {
  const ids = Array.from({ length: 100 }, (_, number) => userId(`${number}`));
  await page(t, 1, ids[7]);
  const { news } = await page(t, 0, userId("ann"), ids);
  await news.when("both lists", ({ length }) => length === 2);
  assert.deepEqual(news.items[0], ["online", [ids[7]]]);
  assert.equal(news.items[1][1].length, 99);
});

test("[P47] watchlists that are none are refused with the whole user", async (t) => {
  const raw = new RawClient(t);
  const { socket_id } = await raw.established();
  for (const [number, watchlist] of ["bob", [7], [""], ["a\nb"]].entries()) {
    raw.send("pusher:signin", publisher().authenticateUser(socket_id, { id: "ann", watchlist }));
    await raw.frames.when("an error", (frames) => frames.filter(({ event, data }) => event === "pusher:error" && data.code === 4009).length === number + 1);
  }
});
