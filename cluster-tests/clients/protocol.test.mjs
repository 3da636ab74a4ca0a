// What the protocol says and no library asks for, over plain WebSockets and by plain
// requests; rows are those at the end of docs/protocol/pusher.md. Whoever is another client
// is at another gateway, if DUNLIN_URLS names several.

import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { once } from "node:events";
import { test } from "node:test";
import { RawClient, app, channelName, gateways, publisher, server, signature, unless, withoutApp } from "./support.mjs";

/** A connection that is open, and what the server has said of it. */
async function open(t, { path, at = server, ...options } = {}) {
  const raw = new RawClient(t, path, at, options);
  return { raw, ...(await raw.established()) };
}

/** One at another gateway. */
const openElsewhere = (t) => open(t, { at: gateways.at(-1) });

/** Subscribes with a signature, and waits for the acknowledgement. */
async function enter({ raw, socket_id }, channel, channelData) {
  raw.send("pusher:subscribe", { channel, auth: signature(socket_id, channel, { channelData }), channel_data: channelData });
  return raw.frame("pusher_internal:subscription_succeeded", channel);
}

const STRICT = "/app/strict-key?protocol=7";
const strictly = (socketId, channel) => signature(socketId, channel, { secret: "strict-secret" }).replace(/^.*:/, "strict-key:");

const whisper = (raw, channel, data) => raw.socket.send(JSON.stringify({ event: "client-said", channel, data }));
const refusals = (frames) => frames.filter(({ event, data }) => event === "pusher:error" && data.code === 4301);

test("[P2] versions 5, 6 and 7 are spoken", async (t) => {
  for (const version of [5, 6, 7]) {
    const { socket_id, activity_timeout } = await open(t, { path: `/app/${app.key}?protocol=${version}&client=js&version=8.6.0&flash=false` });
    assert.match(socket_id, /^\d+\.\d+$/);
    assert.ok(activity_timeout > 0);
  }
});

test("[P3 P23 P24 P34] data is text of JSON", async (t) => {
  const name = channelName("presence-cache-");
  const first = await open(t);
  assert.deepEqual(JSON.parse((await enter(first, name, '{"user_id":7}')).data), { presence: { count: 1, ids: ["7"], hash: { 7: null } } });
  await first.raw.frame("pusher:cache_miss", name);
  const other = await openElsewhere(t);
  await enter(other, name, '{"user_id":"b","user_info":{"name":"Bo"}}');
  const added = await first.raw.frame("pusher_internal:member_added", name);
  assert.deepEqual(JSON.parse(added.data), { user_id: "b", user_info: { name: "Bo" } });
  other.raw.send("pusher:unsubscribe", { channel: name });
  const removed = await first.raw.frame("pusher_internal:member_removed", name);
  assert.deepEqual(JSON.parse(removed.data), { user_id: "b" });
  for (const { event, data } of first.raw.frames.items) assert.equal(typeof data, "string", event);
});

test("[P4 P5] pings are answered, those of WebSocket too", async (t) => {
  const { raw } = await open(t);
  await raw.roundTrip();
  const pong = once(raw.socket, "pong");
  raw.socket.ping("are you there?");
  assert.equal(String(await pong), "are you there?");
});

test("[P6] who is silent is pinged, and then closed with 4201", { timeout: 60_000 }, async (t) => {
  const { raw, activity_timeout } = await open(t);
  if (activity_timeout > 10) return t.skip(`the server waits ${activity_timeout} s for a sign of life, and a test at most 10`);
  await raw.frame("pusher:ping");
  assert.equal((await raw.closed(40_000)).code, 4201);
});

test("[P8] nothing of a channel precedes its acknowledgement", async (t) => {
  const name = channelName();
  const all = await Promise.all(Array.from({ length: 10 }, (_, number) => (number % 2 ? open(t) : openElsewhere(t))));
  const numbers = Array.from({ length: 20 }, (_, number) => `${number}`);
  const publishing = Promise.all(numbers.map((number) => publisher().trigger(name, "n", number)));
  await Promise.all(all.map(({ raw }) => raw.subscribe(name)));
  await publishing;
  await publisher().trigger(name, "end", "x");
  for (const { raw } of all) {
    await raw.frame("end", name);
    const [acknowledgement, ...events] = raw.frames.items.filter(({ channel }) => channel === name);
    assert.deepEqual(acknowledgement, { event: "pusher_internal:subscription_succeeded", channel: name, data: "{}" });
    assert.equal(new Set(events.map(({ data }) => data)).size, events.length);
  }
});

test("[P15] what channels may be called", async (t) => {
  const { raw } = await open(t);
  for (const name of [`A-z_0=@,.;${channelName()}`, channelName().padEnd(200, "x")]) await raw.subscribe(name);
  for (const name of ["", "a b", "a:b", "a/b", "#a", "ż", channelName().padEnd(201, "x")]) {
    raw.send("pusher:subscribe", { channel: name });
    const { data } = await raw.frame("pusher:subscription_error", name);
    assert.deepEqual([data.type, data.status], ["InvalidChannel", 400], name);
  }
});

test("[P17] a signature is for one connection, one channel and one app", async (t) => {
  const [me, somebody] = [await open(t), await open(t)];
  const auth = (id, channel) => signature(id, channel);
  const [wanted, other] = [channelName("private-"), channelName("private-")];
  const anotherApps = auth(me.socket_id, wanted).replace(/^.*:/, "another-key:");
  const wrong = [undefined, "", "x", auth(somebody.socket_id, wanted), auth(me.socket_id, other), anotherApps];
  for (const auth of wrong) me.raw.send("pusher:subscribe", { channel: wanted, auth });
  await me.raw.roundTrip();
  const refused = me.raw.frames.items.filter(({ event }) => event === "pusher:subscription_error");
  assert.deepEqual(refused.map(({ channel, data }) => [channel, data.type, data.status]), wrong.map(() => [wanted, "AuthError", 401]));
  await enter(me, wanted);
});

test("[P18] a signature is of `channel_data` as well", async (t) => {
  const me = await open(t);
  const [name, channelData] = [channelName("private-"), '{ "any":  "thing" }'];
  me.raw.send("pusher:subscribe", { channel: name, auth: signature(me.socket_id, name), channel_data: channelData });
  await me.raw.frame("pusher:subscription_error", name);
  await enter(me, name, channelData);
});

test("[P21] an event for an encrypted channel goes to it alone", async (t) => {
  const me = await open(t);
  const [sealed, other] = [channelName("private-encrypted-"), channelName("private-")];
  for (const name of [sealed, other]) await enter(me, name);
  const post = (body) => publisher().post({ path: "/events", body: { name: "e", data: '{"nonce":"n","ciphertext":"c"}', ...body } });
  const refused = await post({ channels: [sealed, other] }).catch((error) => error);
  assert.equal(refused.status, 400);
  await post({ channel: other });
  await post({ channels: [sealed] });
  assert.equal((await me.raw.frame("e", sealed)).data, '{"nonce":"n","ciphertext":"c"}');
  assert.equal(me.raw.frames.items.filter(({ event }) => event === "e").length, 2);
});

test("[P22 P32] where clients may not publish", async (t) => {
  const [me, other] = [await open(t), await openElsewhere(t)];
  const [plain, sealed, unknown, fine] = ["", "private-encrypted-", "private-", "private-"].map(channelName);
  for (const one of [me, other]) {
    await one.raw.subscribe(plain);
    for (const name of [sealed, fine]) await enter(one, name);
  }
  await enter(other, unknown);
  for (const [number, name] of [plain, sealed, unknown].entries()) {
    whisper(me.raw, name, {});
    await me.raw.frames.when(`a refusal in ${name}`, (frames) => refusals(frames).length === number + 1);
  }
  whisper(me.raw, fine, {});
  await other.raw.frame("client-said", fine);
  assert.equal(other.raw.frames.items.filter(({ event }) => event === "client-said").length, 1);
});

unless(withoutApp("strict"))("[P32] clients publish in apps that have client events", async (t) => {
  const { raw, socket_id } = await open(t, { path: STRICT });
  const name = channelName("private-");
  raw.send("pusher:subscribe", { channel: name, auth: strictly(socket_id, name) });
  await raw.frame("pusher_internal:subscription_succeeded", name);
  whisper(raw, name, {});
  await raw.frames.when("a refusal", (frames) => refusals(frames).length === 1);
});

test("[P30 P33] clients publish twenty events at once, and then ten a second", async (t) => {
  const name = channelName("private-");
  const [me, other] = [await open(t), await openElsewhere(t)];
  for (const one of [me, other]) await enter(one, name);
  const said = (frames) => frames.filter(({ event }) => event === "client-said").map(({ data }) => JSON.parse(data).n);
  for (let n = 0; n < 30; n += 1) whisper(me.raw, name, { n });
  await me.raw.frames.when("refusals", (frames) => refusals(frames).length > 0);
  await me.raw.roundTrip();
  const taken = 30 - refusals(me.raw.frames.items).length;
  assert.ok(taken >= 20 && taken < 30, `${taken}`);
  const heard = await other.raw.frames.when("what was taken", (frames) => said(frames).length >= taken && said(frames));
  assert.deepEqual(heard.slice(0, 20), Array.from({ length: 20 }, (_, n) => n));
  // Refused is one event, and not the client: soon there is room again.
  for (let n = 30; !said(other.raw.frames.items).some((n) => n >= 30); n += 1) {
    assert.ok(n < 100, "none is taken any more");
    whisper(me.raw, name, { n });
    await me.raw.roundTrip();
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  assert.deepEqual(said(me.raw.frames.items), []);
});

test("[P51] what is not text is published as its JSON", async (t) => {
  const name = channelName();
  const { raw } = await open(t);
  await raw.subscribe(name);
  for (const [number, data] of [{ a: [1, "two"] }, [1], 7, true].entries()) {
    const answer = await publisher().post({ path: "/events", body: { name: `e${number}`, channel: name, data } });
    assert.deepEqual(await answer.json(), {});
    assert.equal((await raw.frame(`e${number}`, name)).data, JSON.stringify(data));
  }
});

test("[P55] each part of a request is signed, and the signature is new", async () => {
  const path = `/apps/${app.id}/events`;
  const body = JSON.stringify({ name: "e", channel: channelName(), data: "x" });
  const signed = (options) => new URLSearchParams(publisher(options).createSignedQueryString({ method: "POST", path, body, params: {} }));
  const post = async (query, sent = body) => {
    const answer = await fetch(new URL(`${path}?${query}`, server), { method: "POST", body: sent, headers: { "content-type": "application/json" } });
    return answer.status;
  };
  assert.equal(await post(signed()), 200);
  for (const wrong of [{ secret: "another" }, { key: "another" }]) assert.equal(await post(signed(wrong)), 401, JSON.stringify(wrong));
  assert.equal(await post(signed(), body.replace('"x"', '"y"')), 401, "another body");
  for (const part of ["auth_key", "auth_timestamp", "auth_version", "body_md5", "auth_signature"]) {
    const query = signed();
    query.delete(part);
    assert.equal(await post(query), 401, `without ${part}`);
  }
  const old = signed();
  old.delete("auth_signature");
  old.set("auth_timestamp", Math.floor(Date.now() / 1_000) - 700);
  old.set("auth_signature", createHmac("sha256", app.secret).update(["POST", path, old].join("\n")).digest("hex"));
  assert.equal(await post(old), 401, "an old one");
});

test("[P56] paths and methods that are not served", async () => {
  const ask = async (path, method) => (await fetch(new URL(path, server), { method })).status;
  for (const path of [`/apps/${app.id}/nothing`, "/apps", "/nothing"]) assert.equal(await ask(path), 404, path);
  for (const [path, method] of [["events", "GET"], ["channels", "POST"]]) assert.equal(await ask(`/apps/${app.id}/${path}`, method), 405, path);
});

unless(withoutApp("disabled"))("[P66] a disabled app is closed with 4003", async (t) => {
  const raw = new RawClient(t, "/app/disabled-key?protocol=7");
  assert.equal((await raw.closed()).code, 4003);
  assert.deepEqual(raw.frames.items.map(({ event, data }) => [event, data.code]), [["pusher:error", 4003]]);
  const refused = await publisher({ appId: "disabled", key: "disabled-key", secret: "disabled-secret" }).trigger("a", "e", "x").catch((error) => error);
  assert.equal(refused.status, 403);
});

unless(withoutApp("small"))("[P67] one connection too many is closed with 4004", async (t) => {
  await open(t, { path: "/app/small-key?protocol=7" });
  const second = new RawClient(t, "/app/small-key?protocol=7");
  assert.equal((await second.closed()).code, 4004);
  assert.deepEqual(second.frames.items.map(({ event, data }) => [event, data.code]), [["pusher:error", 4004]]);
});

unless(withoutApp("strict"))("[P70] a page of another origin is closed with 4009", async (t) => {
  const refused = new RawClient(t, STRICT, server, { origin: "https://elsewhere.example" });
  assert.equal((await refused.closed()).code, 4009);
  assert.deepEqual(refused.frames.items.map(({ event, data }) => [event, data.code]), [["pusher:error", 4009]]);
  await open(t, { path: STRICT, origin: "https://example.com" });
  // What is no page has none.
  await open(t, { path: STRICT });
});

unless(withoutApp("strict"))("[P44] who does not say in time who it is is closed with 4009", async (t) => {
  const [silent, signed] = [await open(t, { path: STRICT }), await open(t, { path: STRICT })];
  const name = channelName("private-");
  await silent.raw.subscribe(channelName());
  signed.raw.send("pusher:subscribe", { channel: name, auth: strictly(signed.socket_id, name) });
  assert.equal((await silent.raw.closed()).code, 4009);
  await signed.raw.roundTrip();
});

test("[P71] events that clients do not send are errors, and it goes on", async (t) => {
  const { raw } = await open(t);
  const unknown = ["something", "pusher:nothing", "pusher_internal:subscription_succeeded"];
  for (const event of unknown) raw.send(event, {});
  await raw.roundTrip();
  assert.deepEqual(raw.frames.items.filter(({ event }) => event === "pusher:error").map(({ data }) => data.code), [null, null, null]);
  // To leave a channel that one is not in is none.
  raw.send("pusher:unsubscribe", { channel: channelName() });
  await raw.roundTrip();
  assert.equal(raw.frames.items.filter(({ event }) => event === "pusher:error").length, unknown.length);
});

test("[P74] a connection has 1,000 channels", async (t) => {
  const { raw } = await open(t);
  const name = channelName();
  for (let number = 1; number <= 1_001; number += 1) raw.send("pusher:subscribe", { channel: `${name}-${number}` });
  const { data } = await raw.frame("pusher:subscription_error");
  assert.equal(data.type, "LimitReached");
  await raw.frame("pusher_internal:subscription_succeeded", `${name}-1000`);
  raw.send("pusher:unsubscribe", { channel: `${name}-1` });
  await raw.roundTrip();
  assert.equal(raw.frames.items.filter(({ event }) => event === "pusher:subscription_error").length, 1);
});

test("[P75] more than 2,000 messages at once are not taken, and it goes on", async (t) => {
  const { raw } = await open(t);
  const name = channelName();
  await raw.subscribe(name);
  for (let number = 0; number < 2_400; number += 1) raw.send("pusher:ping", {});
  const { data } = await raw.frame("pusher:error");
  assert.equal(data.code, 4301);
  const pongs = raw.frames.items.filter(({ event }) => event === "pusher:pong").length;
  assert.ok(pongs >= 1_990, `${pongs}`);
  await publisher().trigger(name, "still", "there");
  await raw.frame("still", name);
});

test("[P78] probes of load balancers are answered", async () => {
  const ask = async (path) => (await fetch(new URL(path, server))).status;
  for (const path of ["/ready", "/live", "/up", `/up/${app.id}`, "/accept-traffic"]) assert.equal(await ask(path), 200, path);
  assert.equal(await ask("/up/nobody"), 404);
});
