// How many subscribers there are, in an app that has them counted: told to pages by
// pusher-js, and to backends by the HTTP API.

import assert from "node:assert/strict";

process.env.PUSHER_APP_ID = "counted";
process.env.PUSHER_APP_KEY = "counted-key";
process.env.PUSHER_APP_SECRET = "counted-secret";
const { Inbox, bound, channelName, gateways, publisher, pusherClient, signature, unless, withoutApp } = await import("./support.mjs");

const test = unless(withoutApp("counted") || withoutApp("strict"));

/** A page that subscribes; `counts` are what it is told. */
function subscriber(t, number, name) {
  const customHandler = ({ socketId, channelName: channel }, done) => {
    const channelData = channel.startsWith("presence-") ? `{"user_id":"${number}"}` : undefined;
    done(null, { auth: signature(socketId, channel, { channelData }), channel_data: channelData });
  };
  const { client, frames } = pusherClient(t, { at: gateways[number % gateways.length], channelAuthorization: { customHandler } });
  const counts = new Inbox();
  const channel = client.subscribe(name);
  channel.bind("pusher:subscription_count", ({ subscription_count: count }) => counts.push(count));
  const subscribed = bound(channel, "pusher:subscription_succeeded");
  return { client, frames, channel, counts, subscribed };
}

const ask = async (path, params) => {
  const answer = await publisher().get({ path, params }).catch((error) => error);
  return [answer.status, answer.status === 200 ? await answer.json() : answer.body];
};

/** Waits until a backend is told so many. */
async function told(name, count) {
  for (const until = Date.now() + 10_000; ; ) {
    const [, answer] = await ask(`/channels/${name}`, { info: "subscription_count" });
    if (answer.subscription_count === count) return;
    assert.ok(Date.now() < until, `${name}: ${JSON.stringify(answer)}, not ${count}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

test("[P48 P50] all are told how many there are, at whichever gateways, as they come and go", async (t) => {
  for (const prefix of ["", "private-"]) {
    const name = channelName(prefix);
    const all = [0, 1, 0].map((number) => subscriber(t, number, name));
    for (const { counts } of all) await counts.first("all three", (count) => count === 3);
    await told(name, 3);
    all[0].client.unsubscribe(name);
    all[1].client.disconnect();
    await all[2].counts.when("one", (counts) => counts.at(-1) === 1);
    await told(name, 1);
  }
});

test("[P48] who comes is told at once, though it may change nothing, and who stays when it goes", async (t) => {
  const name = channelName();
  const stays = subscriber(t, 0, name);
  await stays.counts.first("itself", (count) => count === 1);
  const comes = subscriber(t, 0, name);
  await comes.subscribed;
  await comes.counts.first("some count", () => true);
  await comes.counts.first("both", (count) => count === 2);
  comes.client.unsubscribe(name);
  await stays.counts.when("itself again", (counts) => counts.at(-1) === 1);
});

test("[P49 P50] members of presence channels are told who is there, and backends how many connections", async (t) => {
  const name = channelName("presence-");
  const all = [0, 0].map((number) => subscriber(t, number, name));
  for (const { subscribed } of all) await subscribed;
  await told(name, 2);
  const [, { user_count }] = await ask(`/channels/${name}`, { info: "user_count,subscription_count" });
  assert.equal(user_count, 1);
  assert.deepEqual(all.map(({ counts }) => counts.items), [[], []]);
});

test("[P50] lists of channels have it, and what is published is answered with it", async (t) => {
  const name = channelName("listed-");
  const { subscribed } = subscriber(t, 1, name);
  await subscribed;
  await told(name, 1);
  const [, { channels }] = await ask("/channels", { info: "subscription_count", filter_by_prefix: name });
  assert.deepEqual(channels, { [name]: { subscription_count: 1 } });
  const answer = await publisher().trigger(name, "e", "x", { info: "subscription_count" });
  assert.deepEqual(await answer.json(), { channels: { [name]: { subscription_count: 1 } } });
});

test("[P50] an app that does not count says how that is turned on", async () => {
  const other = publisher({ appId: "strict", key: "strict-key", secret: "strict-secret" });
  const refused = await other.get({ path: `/channels/${channelName()}`, params: { info: "subscription_count" } }).catch((error) => error);
  assert.equal(refused.status, 400);
  assert.match(refused.body, /subscription_count/);
});
