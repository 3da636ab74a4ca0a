// The `eventsource` package, a WHATWG EventSource outside browsers, against the server.

import assert from "node:assert/strict";
import { test } from "node:test";
import { EventSource } from "eventsource";
import { Inbox, app, channelName, gate, publisher, server } from "./support.mjs";

const POSITION = /^[0-9a-f]{16}-\d+$/;

function streamUrl(channels, { key = app.key, envelope, at = server } = {}) {
  const url = new URL(`/app/${key}/sse`, at);
  for (const channel of channels) url.searchParams.append("channel", channel);
  if (envelope) url.searchParams.set("envelope", "true");
  return url;
}

/** A stream that is open; `inbox` has its events of these names, and its errors. */
async function stream(t, url, names = []) {
  const source = new EventSource(url);
  t.after(() => source.close());
  const inbox = new Inbox();
  for (const name of ["open", "message", "error", ...names]) source.addEventListener(name, (event) => inbox.push(event));
  return { source, inbox };
}

const of = (type) => (event) => event.type === type;

test("[P79] an event has its name, its data and its position", async (t) => {
  const name = channelName();
  const { inbox } = await stream(t, streamUrl([name]), ["news"]);
  await inbox.first("open", of("open"));
  await publisher().trigger(name, "news", "hello");
  const news = await inbox.first("news", of("news"));
  assert.equal(news.data, "hello");
  assert.match(news.lastEventId, POSITION);
  await publisher().trigger(name, "message", "plain");
  assert.equal((await inbox.first("message", of("message"))).data, "plain");
});

test("[P79] positions count up", async (t) => {
  const name = channelName();
  const { inbox } = await stream(t, streamUrl([name]));
  await inbox.first("open", of("open"));
  for (let n = 0; n < 20; n += 1) await publisher().trigger(name, "message", String(n));
  const messages = await inbox.when("20 messages", (all) => {
    const found = all.filter(of("message"));
    return found.length === 20 && found;
  });
  assert.deepEqual(messages.map(({ data }) => Number(data)), [...Array(20).keys()]);
  const offsets = messages.map(({ lastEventId }) => Number(lastEventId.split("-")[1]));
  assert.deepEqual(offsets, offsets.map((_, i) => offsets[0] + i));
});

test("[P79] lines of data stay lines", async (t) => {
  const name = channelName();
  const { inbox } = await stream(t, streamUrl([name]));
  await inbox.first("open", of("open"));
  const texts = ["a\nb", "\n", "\n\nx\n\n", "data: a\n\nevent: b\nid: 7", ": comment", " leading", "\u{1F426}\nżółw"];
  for (const [number, text] of texts.entries()) {
    await publisher().trigger(name, "message", text);
    const messages = await inbox.when(`message ${number}`, (all) => {
      const found = all.filter(of("message"));
      return found.length > number && found;
    });
    assert.equal(messages[number].data, text);
    assert.match(messages[number].lastEventId, POSITION);
  }
});

test("[P80] several channels are told apart by the envelope", async (t) => {
  const names = [channelName(), channelName()].sort();
  const { inbox } = await stream(t, streamUrl(names, { envelope: true }));
  await inbox.first("open", of("open"));
  for (const name of names) await publisher().trigger(name, "news", `for\n${name}`);
  const messages = await inbox.when("both messages", (all) => {
    const found = all.filter(of("message"));
    return found.length === 2 && found;
  });
  const envelopes = messages.map(({ data }) => JSON.parse(data)).sort((a, b) => (a.channel < b.channel ? -1 : 1));
  assert.deepEqual(envelopes, names.map((name) => ({ event: "news", channel: name, data: `for\n${name}` })));
  for (const position of messages[1].lastEventId.split(",")) assert.match(position, POSITION);
});

for (const [what, url, status, code] of [
  ["a private channel", streamUrl([channelName("private-")]), 403, "forbidden_channel"],
  ["an unknown key", streamUrl([channelName()], { key: "no-such-key" }), 404, "unknown_app"],
]) {
  test(`[P83] ${what} is refused with ${status}, for good`, async (t) => {
    const { source, inbox } = await stream(t, url);
    const error = await inbox.first("error", of("error"));
    assert.equal(error.code, status);
    assert.equal(source.readyState, EventSource.CLOSED);
    const response = await fetch(url);
    const body = await response.json();
    assert.deepEqual([response.status, body.status, body.code], [status, status, code]);
  });
}

test("[P83] a page of any origin may read a stream, and why it was refused", async () => {
  for (const url of [streamUrl([channelName()]), streamUrl([channelName("private-")])]) {
    const stop = new AbortController();
    const response = await fetch(url, { headers: { origin: "https://elsewhere.example" }, signal: stop.signal });
    assert.equal(response.headers.get("access-control-allow-origin"), "*");
    stop.abort();
  }
});

test("[P81] after a lost connection it goes on where it stood, by itself", async (t) => {
  const { at, cut } = await gate(t);
  const names = [channelName(), channelName()].sort();
  const url = streamUrl(names, { envelope: true, at });
  const { inbox } = await stream(t, url);
  await inbox.first("open", of("open"));
  await publisher().trigger(names[0], "e", "1");
  await inbox.first("1", of("message"));
  cut();
  await inbox.first("the loss", of("error"));
  for (const text of ["2", "3"]) for (const name of names) await publisher().trigger(name, "e", text);
  await inbox.when("the stream again", (all) => all.filter(of("open")).length === 2);
  await publisher().trigger(names[0], "e", "4");
  const messages = await inbox.when("4", (all) => {
    const found = all.filter(of("message")).map(({ data }) => JSON.parse(data));
    return found.some(({ data }) => data === "4") && found;
  });
  const texts = (name) => messages.filter(({ channel }) => channel === name).map(({ data }) => data);
  assert.deepEqual(texts(names[0]), ["1", "2", "3", "4"]);
  assert.deepEqual(texts(names[1]), ["2", "3"]);
});
