// The protocol's edges, which no library goes near, over a plain WebSocket.

import assert from "node:assert/strict";
import { test } from "node:test";
import { RawClient, app, channelName, publisher } from "./support.mjs";

const MESSAGE_BYTES_MAX = 64 * 1024;
/** Enough that one of them comes to each worker of the server. */
const NEWCOMERS = 32;

/** What one client did must not be felt by others. */
async function othersAreServed(t) {
  const newcomers = Array.from({ length: NEWCOMERS }, () => new RawClient(t));
  await Promise.all(newcomers.map(async (raw) => {
    await raw.established();
    await raw.roundTrip();
  }));
}

test("[P71] text that is not the protocol's is an error, and the connection stays", async (t) => {
  const raw = new RawClient(t);
  await raw.established();
  const malformed = ["{", "", "null", "[]", "42", '"text"', "{}", '{"event":7}', '{"event":"pusher:subscribe"}', '{"event":"pusher:subscribe","data":{}}'];
  for (const text of malformed) raw.socket.send(text);
  await raw.roundTrip();
  const errors = raw.frames.items.filter(({ event }) => event === "pusher:error");
  assert.equal(errors.length, malformed.length);
  for (const { data } of errors) {
    assert.match(data.message, /./);
    assert.equal(data.code, null);
  }
});

test("[P72] a binary frame ends the connection with 1003", async (t) => {
  const raw = new RawClient(t);
  await raw.established();
  raw.socket.send(Buffer.from('{"event":"pusher:ping","data":{}}'), { binary: true });
  assert.equal((await raw.closed()).code, 1003);
  await othersAreServed(t);
});

test("[P73] 64 KiB is the largest message; one byte more ends the connection with 1009", async (t) => {
  const sized = (bytes) => {
    const text = (padding) => JSON.stringify({ event: "pusher:ping", data: {}, padding });
    return text("x".repeat(bytes - text("").length));
  };
  const raw = new RawClient(t);
  await raw.established();
  raw.socket.send(sized(MESSAGE_BYTES_MAX));
  await raw.frame("pusher:pong");
  raw.socket.send(sized(MESSAGE_BYTES_MAX + 1));
  assert.equal((await raw.closed()).code, 1009);
  await othersAreServed(t);
});

test("[P73] a message far over the limit ends the connection with 1009 as well", async (t) => {
  const raw = new RawClient(t);
  await raw.established();
  raw.socket.send("x".repeat(4 * 1024 * 1024));
  assert.equal((await raw.closed()).code, 1009);
  await othersAreServed(t);
});

for (const [what, path, code] of [
  ["[P68] an unknown path", "/nowhere", 4005],
  ["[P68] the page of `dunlin dev`", "/", 4005],
  ["[P65] an unknown key", "/app/no-such-key?protocol=7", 4001],
  ["[P69] a version that is not spoken", `/app/${app.key}?protocol=99`, 4007],
  ["[P69] a version that is no number", `/app/${app.key}?protocol=abc`, 4006],
]) {
  test(`${what} is refused by an error frame and close code ${code}`, async (t) => {
    const raw = new RawClient(t, path);
    const closed = await raw.closed();
    assert.equal(closed.code, code);
    assert.deepEqual(raw.frames.items.map(({ event, data }) => [event, data.code]), [["pusher:error", code]]);
  });
}

test("[P1 P2] the version may be left out", async (t) => {
  const raw = new RawClient(t, `/app/${app.key}`);
  const { socket_id, activity_timeout } = await raw.established();
  assert.match(socket_id, /^\d+\.\d+$/);
  assert.ok(activity_timeout > 0);
});

test("[P9] a second subscription is acknowledged again and delivers once", async (t) => {
  const raw = new RawClient(t);
  await raw.established();
  const name = channelName();
  await raw.subscribe(name);
  raw.send("pusher:subscribe", { channel: name });
  await raw.frames.when("two acknowledgements", (frames) => acknowledgements(frames, name) === 2);
  await deliversOnce(raw, name);
});

test("[P9] a second subscription that overtakes the first one's acknowledgement delivers once", async (t) => {
  const raw = new RawClient(t);
  await raw.established();
  const name = channelName();
  raw.send("pusher:subscribe", { channel: name });
  raw.send("pusher:subscribe", { channel: name });
  // One acknowledgement may stand for both.
  await raw.frames.when("an acknowledgement", (frames) => acknowledgements(frames, name) >= 1);
  await deliversOnce(raw, name);
});

function acknowledgements(frames, name) {
  return frames.filter(({ event, channel }) => event === "pusher_internal:subscription_succeeded" && channel === name).length;
}

async function deliversOnce(raw, name) {
  await publisher().trigger(name, "e", "x");
  await publisher().trigger(name, "marker", "x");
  await raw.frame("marker", name);
  assert.equal(raw.frames.items.filter(({ event }) => event === "e").length, 1);
}
