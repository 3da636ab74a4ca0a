// What an app may name, and how many, where its configuration allows less than others have.

import assert from "node:assert/strict";

process.env.PUSHER_APP_ID = "counted";
process.env.PUSHER_APP_KEY = "counted-key";
process.env.PUSHER_APP_SECRET = "counted-secret";
const { RawClient, channelName, gateways, publisher, server, signature, unless, withoutApp } = await import("./support.mjs");

const test = unless(withoutApp("counted"));

const long = (length) => "x".repeat(length);

/** Status and words of a refused request. */
async function refusal(request) {
  const error = await request.then(() => assert.fail("it was taken"), (refused) => refused);
  return [error.status, error.body];
}

test("[P76] names and numbers of what is published", async () => {
  const sdk = publisher();
  await sdk.trigger([long(40), "b"], long(20), "");
  for (const [request, words] of [
    [() => sdk.trigger(long(41), "e", ""), /40 bytes/],
    [() => sdk.trigger("a", long(21), ""), /20 bytes/],
    [() => sdk.trigger(["a", "b", "c"], "e", ""), /1 to 2/],
    [() => sdk.triggerBatch(["a", "b", "c"].map((channel) => ({ channel, name: "e", data: "" }))), /1 to 2/],
  ]) {
    const [status, body] = await refusal(request());
    assert.equal(status, 400);
    assert.match(body, words);
  }
});

test("[P76] names of channels that are subscribed to", async (t) => {
  const raw = new RawClient(t);
  await raw.established();
  await raw.subscribe(long(40));
  raw.send("pusher:subscribe", { channel: long(41) });
  const { data } = await raw.frame("pusher:subscription_error", long(41));
  assert.deepEqual([data.type, data.status], ["InvalidChannel", 400]);
  assert.match(data.error, /40 bytes/);
  const stream = await fetch(new URL(`/app/counted-key/sse?channel=${long(41)}`, server));
  assert.equal(stream.status, 400);
});

test("[P76 P77] members of a channel, across gateways, and what is told of them", async (t) => {
  const name = channelName("presence-");
  const members = [];
  const join = async (number, channelData) => {
    const raw = new RawClient(t, `/app/counted-key?protocol=7`, gateways[number % gateways.length]);
    members.push(raw);
    const { socket_id } = await raw.established();
    raw.send("pusher:subscribe", { channel: name, auth: signature(socket_id, name, { channelData }), channel_data: channelData });
    return raw.frames.first("an answer", ({ channel }) => channel === name);
  };
  const of = (user, info) => JSON.stringify({ user_id: user, user_info: info });
  const large = await join(0, of("a", long(19)));
  assert.deepEqual([large.data.type, large.data.status], ["InvalidUser", 400]);
  const succeeded = "pusher_internal:subscription_succeeded";
  for (const [number, user] of ["a", "b"].entries()) assert.equal((await join(number, of(user, long(18)))).event, succeeded);
  const full = await join(0, of("c"));
  assert.deepEqual([full.event, full.data.type, full.data.status], ["pusher:subscription_error", "LimitReached", 403]);
  assert.equal((await join(1, of("a"))).event, succeeded, "a user that is there has room for another connection");
});
