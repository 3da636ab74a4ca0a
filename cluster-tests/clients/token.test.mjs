// Tokens of an app, as a backend makes them and as `dunlin token app` does: event streams
// of private channels, and publishing without the app's secret.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHmac } from "node:crypto";
import { test } from "node:test";
import { EventSource } from "eventsource";
import { Inbox, app, bound, channelName, gateways, publisher, pusherClient, signature, within } from "./support.mjs";

const soon = () => Math.floor(Date.now() / 1_000) + 60;

/** A JSON Web Token, made by hand. */
function token(claims, { kid = app.key, alg = "HS256", secret = app.secret } = {}) {
  const part = (json) => Buffer.from(JSON.stringify(json)).toString("base64url");
  const signed = `${part({ alg, typ: "JWT", kid })}.${part({ exp: soon(), ...claims })}`;
  return `${signed}.${createHmac("sha256", secret).update(signed).digest("base64url")}`;
}

const streamUrl = (gateway, channels, query = {}) => {
  const url = new URL(`/app/${app.key}/sse`, gateway);
  for (const channel of channels) url.searchParams.append("channel", channel);
  for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
  return url;
};

/** Status and code of a refused stream. */
async function refusal(channels, query, headers) {
  const answer = await fetch(streamUrl(gateways[0], channels, query), { headers });
  const body = await answer.json();
  return [answer.status, body.code];
}

/** Publishes with a token; the answer. */
async function publish(bearer, body, path = "events") {
  const url = new URL(`/apps/${app.id}/${path}`, gateways[0]);
  const headers = { authorization: `Bearer ${bearer}`, "content-type": "application/json" };
  const answer = await fetch(url, { method: "POST", headers, body: JSON.stringify(body) });
  return { status: answer.status, headers: answer.headers, body: await answer.json() };
}

test("[P84] an event stream of private channels, by header and by query", async (t) => {
  const names = ["private-", "private-encrypted-", ""].map((prefix) => channelName(prefix));
  const bearer = token({ subscribe: ["private-test-*", "private-encrypted-test-*"] });
  const publishing = token({ publish: ["*"] });
  const ways = [
    [streamUrl(gateways[0], names, { envelope: true }), (url, init) => fetch(url, { ...init, headers: { ...init.headers, authorization: `Bearer ${bearer}` } })],
    [streamUrl(gateways.at(-1), names, { envelope: true, token: bearer }), fetch],
  ];
  for (const [url, fetcher] of ways) {
    const stream = new EventSource(url.href, { fetch: fetcher });
    t.after(() => stream.close());
    const inbox = new Inbox();
    stream.onmessage = ({ data }) => inbox.push(JSON.parse(data));
    await within("the stream", new Promise((resolve) => stream.addEventListener("open", resolve)));
    // What the SDK does not encrypt itself goes as it is.
    for (const channel of names) assert.equal((await publish(publishing, { name: "e", channel, data: "x" })).status, 200);
    await inbox.when("all", ({ length }) => length >= names.length);
    assert.deepEqual(inbox.items.map(({ channel }) => channel), names);
  }
});

test("[P85] a token that does not fit is refused, and says why", async () => {
  const [mine, other] = [channelName("private-"), channelName("private-")];
  const good = token({ subscribe: [mine] });
  assert.deepEqual(await refusal([mine]), [403, "forbidden_channel"]);
  assert.deepEqual(await refusal([mine, other], { token: good }), [403, "forbidden_channel"]);
  assert.deepEqual(await refusal([channelName("presence-")], { token: token({ subscribe: ["*"] }) }), [403, "forbidden_channel"]);
  for (const bad of [
    "x",
    token({ subscribe: [mine] }, { secret: "another" }),
    token({ subscribe: [mine] }, { kid: "another" }),
    token({ subscribe: [mine] }, { alg: "none" }),
    token({ subscribe: [mine], exp: "tomorrow" }),
  ]) {
    assert.deepEqual(await refusal([mine], { token: bad }), [401, "bad_token"]);
    assert.deepEqual(await refusal([mine], {}, { authorization: `Bearer ${bad}` }), [401, "bad_token"]);
  }
  const expired = token({ subscribe: [mine], exp: soon() - 61 });
  assert.deepEqual(await refusal([mine], { token: expired }), [401, "expired_token"]);
});

test("[P86] a stream ends with its token", async () => {
  const name = channelName("private-");
  const exp = Math.floor(Date.now() / 1_000) + 2;
  const bearer = token({ subscribe: [name], exp });
  const answer = await fetch(streamUrl(gateways[0], [name], { token: bearer }));
  assert.equal(answer.status, 200);
  await within("its end", answer.text().catch(() => {}));
  assert.ok(Date.now() / 1_000 >= exp - 0.1, "not before");
  assert.ok(Date.now() / 1_000 < exp + 2.5, "and not when it is looked after anyway");
  assert.deepEqual(await refusal([name], { token: bearer }), [401, "expired_token"]);
});

test("[P87] who has a token publishes into its channels and no others", async (t) => {
  const [mine, other] = [channelName("private-"), channelName()];
  const bearer = token({ publish: [mine] });
  const { client } = pusherClient(t, {
    channelAuthorization: { customHandler: ({ socketId, channelName: name }, done) => done(null, { auth: signature(socketId, name) }) },
  });
  const channel = client.subscribe(mine);
  await bound(channel, "pusher:subscription_succeeded");
  const heard = new Inbox();
  channel.bind("e", (data) => heard.push(data));

  const taken = await publish(bearer, { name: "e", channel: mine, data: "1" });
  assert.deepEqual([taken.status, taken.body], [200, {}]);
  assert.equal(taken.headers.get("access-control-allow-origin"), "*");
  const batch = { batch: [2, 3].map((n) => ({ name: "e", channel: mine, data: `${n}` })) };
  assert.equal((await publish(bearer, batch, "batch_events")).status, 200);
  await heard.when("all", ({ length }) => length === 3);
  assert.deepEqual(heard.items, [1, 2, 3]);

  const code = async (...request) => {
    const { status, body } = await publish(...request);
    return [status, body.code];
  };
  assert.deepEqual(await code(bearer, { name: "e", channels: [mine, other], data: "x" }), [403, "forbidden_channel"]);
  const one = (channel) => ({ name: "e", channel, data: "x" });
  assert.deepEqual(await code(bearer, { batch: [one(mine), one(other)] }, "batch_events"), [403, "forbidden_channel"]);
  assert.deepEqual(await code(token({ subscribe: [mine] }), one(mine)), [403, "forbidden_channel"]);
  assert.deepEqual(await code("x", one(mine)), [401, "bad_token"]);
  assert.deepEqual(await code(token({ publish: [mine], exp: 1 }), one(mine)), [401, "expired_token"]);
  assert.deepEqual(await code(bearer, { ...one(mine), name: "pusher:x" }), [400, "bad_request"]);
  assert.equal(heard.items.length, 3, "nothing of what was refused");
});

test("[P85] a token asks nothing", async () => {
  const url = new URL(`/apps/${app.id}/channels`, gateways[0]);
  const answer = await fetch(url, { headers: { authorization: `Bearer ${token({ subscribe: ["*"] })}` } });
  const { code, error } = await answer.json();
  assert.deepEqual([answer.status, code], [401, "missing_signature"]);
  assert.match(error, /token/);
});

test("[P87] a browser may ask whether it may", async () => {
  for (const path of [`/apps/${app.id}/events`, `/apps/${app.id}/batch_events`, `/app/${app.key}/sse`]) {
    const headers = { origin: "https://example.com", "access-control-request-headers": "authorization" };
    const answer = await fetch(new URL(path, gateways[0]), { method: "OPTIONS", headers });
    assert.equal(answer.status, 204);
    assert.match(answer.headers.get("access-control-allow-headers"), /\bauthorization\b/);
  }
});

test("[P87] `dunlin token app` makes one", { skip: !process.env.DUNLIN && "DUNLIN does not say where the binary is" }, async () => {
  const name = channelName("private-");
  const made = execFileSync(process.env.DUNLIN, ["token", "app", "--publish", name, "--valid", "30"], {
    env: { ...process.env, DUNLIN_APP: `${app.id}:${app.key}:${app.secret}` },
  });
  assert.equal((await publish(made.toString().trim(), { name: "e", channel: name, data: "x" })).status, 200);
});
