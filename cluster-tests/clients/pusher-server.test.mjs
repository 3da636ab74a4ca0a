// The `pusher` SDK, which backends publish with, against the server.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { createHmac } from "node:crypto";
import { test } from "node:test";
import Pusher from "pusher";
import { DEADLINE_MS, Inbox, RawClient, app, channelName, documented, publisher, pusherClient, server, signature, subscribe, unless } from "./support.mjs";

const missing = ["curl", "openssl", "md5sum"].find((tool) => spawnSync(tool, ["--version"]).error);

/** What the API answered to a request that it refused. */
async function refusal(request) {
  const error = await request.then(
    () => assert.fail("the request was not refused"),
    (reason) => reason,
  );
  assert.equal(error.name, "PusherRequestError", error.stack);
  const body = JSON.parse(error.body);
  assert.equal(body.status, error.status);
  assert.match(body.error, /./);
  return { status: error.status, code: body.code, error: body.error };
}

async function subscriber(t, ...channels) {
  const raw = new RawClient(t);
  await raw.established();
  for (const channel of channels) await raw.subscribe(channel);
  return raw;
}

test("[P51] trigger to one channel", async (t) => {
  const name = channelName();
  const raw = await subscriber(t, name);
  const response = await publisher().trigger(name, "e", { a: [1, "two"] });
  assert.equal(response.status, 200);
  assert.deepEqual(await response.json(), {});
  assert.deepEqual(await raw.frame("e", name), { event: "e", channel: name, data: '{"a":[1,"two"]}' });
});

test("[P16 P51] the example of a backend does what it says", async (t) => {
  const [example, ...more] = documented("js");
  assert.equal(more.length, 0);
  const listener = await subscriber(t);
  const { socket_id } = await listener.established();
  const answers = [];
  const run = new (async () => {}).constructor("Pusher", "request", "response", example);
  const authorize = () => run(Pusher, { body: { socket_id, channel_name: "private-orders" } }, { json: (answer) => answers.push(answer) });
  await authorize();
  listener.send("pusher:subscribe", { channel: "private-orders", ...answers[0] });
  await listener.frame("pusher_internal:subscription_succeeded", "private-orders");
  await authorize();
  assert.deepEqual(await listener.frame("created", "private-orders"), { event: "created", channel: "private-orders", data: '{"id":7}' });
});

unless(missing && `there is no ${missing}`)("[P51 P55] the example of a signature by hand is right", async (t) => {
  const [example, ...more] = documented("sh");
  assert.equal(more.length, 0);
  const listener = await subscriber(t, "logs");
  const ran = spawnSync("sh", ["-euc", example], { encoding: "utf8", timeout: DEADLINE_MS });
  assert.equal(ran.stdout, "{}", ran.stderr);
  assert.deepEqual(await listener.frame("message", "logs"), { event: "message", channel: "logs", data: "hello" });
  // What was to be signed is in the answer: signed as it stands, it is right.
  const query = `auth_key=${app.key}&auth_timestamp=${Math.floor(Date.now() / 1000)}&auth_version=1.0`;
  const ask = (signature) => fetch(new URL(`/apps/${app.id}/channels?${query}&auth_signature=${signature}`, server));
  const refused = await ask("00");
  assert.equal(refused.status, 401);
  const { error, code } = await refused.json();
  assert.equal(code, "bad_signature");
  const shown = JSON.parse(error.match(/ of (".*")$/)[1]);
  const signed = await ask(createHmac("sha256", app.secret).update(shown).digest("hex"));
  assert.equal(signed.status, 200);
});

test("[P52] trigger to several channels", async (t) => {
  const names = Array.from({ length: 100 }, () => channelName());
  const raw = await subscriber(t, ...names.slice(0, 3));
  await publisher().trigger(names, "e", "x");
  for (const name of names.slice(0, 3)) assert.equal((await raw.frame("e", name)).data, "x");
});

test("[P55] a wrong secret is refused", async () => {
  const { status, code } = await refusal(publisher({ secret: "wrong" }).trigger(channelName(), "e", "x"));
  assert.deepEqual([status, code], [401, "bad_signature"]);
});

test("[P56] an unknown app is refused", async () => {
  const { status, code } = await refusal(publisher({ appId: "nobody" }).trigger(channelName(), "e", "x"));
  assert.deepEqual([status, code], [404, "unknown_app"]);
});

test("[P54] data over the limit is refused, data at the limit is not", async (t) => {
  const name = channelName();
  const raw = await subscriber(t, name);
  const { status, code } = await refusal(publisher().trigger(name, "e", "x".repeat(100 * 1024 + 1)));
  assert.deepEqual([status, code], [413, "too_large"]);
  // JSON writes each of these as six bytes.
  const largest = "\u0001".repeat(100 * 1024);
  await publisher().trigger(name, "e", largest);
  assert.equal((await raw.frame("e", name)).data, largest);
});

test("[P53] names that are the server's own are refused", async () => {
  for (const name of ["pusher:x", "pusher_internal:x", "dunlin:x"]) {
    const { status, code, error } = await refusal(publisher().trigger(channelName(), name, "x"));
    assert.deepEqual([status, code], [400, "bad_request"]);
    assert.match(error, /reserved/);
  }
});

test("[P88] a signed request with a header of its own", async (t) => {
  // The SDK signs and has no place for headers, so the request is sent by hand.
  const name = channelName();
  const raw = await subscriber(t, name);
  const post = (data, headers) => {
    const body = JSON.stringify({ name: "e", channel: name, data });
    const path = `/apps/${app.id}/events`;
    const query = publisher().createSignedQueryString({ method: "POST", path, body, params: {} });
    return fetch(new URL(`${path}?${query}`, server), { method: "POST", body, headers });
  };
  for (const header of ["Idempotency-Key", "X-Idempotency-Key"]) {
    const response = await post("once", { [header]: "order-17" });
    assert.deepEqual([response.status, await response.json()], [200, {}]);
  }
  const other = await post("other", { "Idempotency-Key": "order-17" });
  assert.deepEqual([other.status, (await other.json()).code], [422, "idempotency_mismatch"]);
  await post("last", {});
  const data = (frames) => frames.filter(({ event }) => event === "e").map((frame) => frame.data);
  await raw.frames.when("the last", (frames) => data(frames).includes("last"));
  assert.deepEqual(data(raw.frames.items), ["once", "last"]);
});

test("[P54] a body far over the limit is refused in the same way, and the next request is served", async () => {
  for (const bytes of [2_000_000, 5_000_000, 20_000_000]) {
    const { status, code } = await refusal(publisher().trigger(channelName(), "e", "x".repeat(bytes)));
    assert.deepEqual([status, code], [413, "too_large"], `${bytes} bytes`);
  }
  // The SDK keeps connections: one that the server gives up has to be announced as such.
  assert.equal((await publisher().trigger(channelName(), "e", "x")).status, 200);
});

test("[P58 P88] a batch is published in order, and repeated once", async (t) => {
  const { client } = pusherClient(t);
  const [one, two] = [channelName(), channelName()];
  const got = new Inbox();
  for (const name of [one, two]) {
    (await subscribe(client, name)).bind_global((event, data) => got.push(`${event}:${data}`));
  }
  const batch = Array.from({ length: 10 }, (_, n) => ({ channel: n % 3 ? one : two, name: `e${n}`, data: `${n}` }));
  const answer = await publisher().triggerBatch(batch);
  assert.equal(answer.status, 200);
  assert.deepEqual(await answer.json(), {});
  await got.when("all", (items) => items.length === 10);
  const of = (channel) => batch.filter((event) => event.channel === channel).map(({ name, data }) => `${name}:${data}`);
  const arrived = (channel) => got.items.filter((item) => of(channel).includes(item));
  assert.deepEqual(arrived(one), of(one));
  assert.deepEqual(arrived(two), of(two));
  // Each event may have a key of its own.
  const keyed = [{ channel: one, name: "k", data: "once", idempotency_key: channelName() }];
  for (let times = 0; times < 2; times++) {
    await publisher().post({ path: "/batch_events", body: { batch: keyed } });
  }
  await publisher().trigger(one, "end", "end");
  await got.first("the end", (item) => item.startsWith("end"));
  assert.equal(got.items.filter((item) => item === "k:once").length, 1);
});

test("[P59] what is wrong with a batch is said, and nothing of it is published", async () => {
  const event = { channel: "a", name: "e", data: "d" };
  for (const [batch, word] of [
    [[], "1 to 10"],
    [Array(11).fill(event), "not 11"],
    [[event, { ...event, channel: "a b" }], "batch\\[1\\]: channel"],
    [[{ ...event, channels: ["a"] }], "one channel"],
    [[{ ...event, idempotency_key: "a b" }], "visible"],
  ]) {
    const error = await publisher().post({ path: "/batch_events", body: { batch } }).catch((error) => error);
    assert.equal(error.status, 400);
    assert.match(error.body, new RegExp(word));
  }
});

test("[P57] a publish tells how many users are there", async (t) => {
  const name = channelName("presence-");
  const raw = new RawClient(t);
  const { socket_id: id } = await raw.established();
  const channelData = JSON.stringify({ user_id: "u" });
  raw.send("pusher:subscribe", { channel: name, auth: signature(id, name, { channelData }), channel_data: channelData });
  await raw.frame("pusher_internal:subscription_succeeded", name);
  const answer = await publisher().trigger([name], "e", "d", { info: "user_count" });
  assert.deepEqual(await answer.json(), { channels: { [name]: { user_count: 1 } } });
  const batch = await publisher().triggerBatch([
    { channel: name, name: "e", data: "d", info: "user_count" },
    { channel: "other", name: "e", data: "d" },
  ]);
  assert.deepEqual(await batch.json(), { batch: [{ user_count: 1 }, {}] });
});
