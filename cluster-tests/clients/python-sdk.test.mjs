// The server SDK for Python, `pusher` on PyPI, with pusher-js at the other end.

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { DEADLINE_MS, RawClient, app, channelName, documented, pusherClient, server, signature, subscribe, unless, within } from "./support.mjs";

const test = unless(!/^\d+$/.test(app.id) && "the SDK takes only ids of apps that are numbers, and PUSHER_APP_ID is none");

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
/** Where `scripts/prerequisites` has put the SDK. */
const PYTHONPATH = process.env.DUNLIN_PYTHONPATH ?? here("../../target/tools/python");

/** The SDK in a process of its own: calls it, and resolves to what it returns. */
function sdk(t, options = {}) {
  const ssl = server.protocol === "https:";
  const settings = { app_id: app.id, key: app.key, secret: app.secret, host: server.hostname, port: Number(server.port) || (ssl ? 443 : 80), ssl, ...options };
  const env = { ...process.env, PYTHONPATH, PUSHER_OPTIONS: JSON.stringify(settings) };
  const child = spawn("python3", [here("sdk.py")], { stdio: ["pipe", "pipe", "inherit"], env });
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]();
  t.after(async () => {
    child.stdin.end();
    if (child.exitCode === null) await once(child, "exit");
  });
  const ask = async (call, ...args) => {
    child.stdin.write(`${JSON.stringify([call, args])}\n`);
    const { value, done } = await within(`the SDK's ${call}`, lines.next());
    assert.ok(!done, "the SDK has ended; scripts/prerequisites installs what it needs");
    return JSON.parse(value);
  };
  return {
    ask,
    call: async (...call) => {
      const answer = await ask(...call);
      assert.ok("ok" in answer, JSON.stringify(answer));
      return answer.ok;
    },
  };
}

test("[P51] the example of a backend does what it says", async (t) => {
  const [example, ...more] = documented("python");
  assert.equal(more.length, 0);
  const listener = new RawClient(t);
  const { socket_id } = await listener.established();
  listener.send("pusher:subscribe", { channel: "private-orders", auth: signature(socket_id, "private-orders") });
  await listener.frame("pusher_internal:subscription_succeeded", "private-orders");
  const ran = spawnSync("python3", ["-c", `import pusher\n${example}`], { encoding: "utf8", timeout: DEADLINE_MS, env: { ...process.env, PYTHONPATH } });
  assert.equal(ran.status, 0, ran.stderr);
  assert.deepEqual(await listener.frame("created", "private-orders"), { event: "created", channel: "private-orders", data: '{"id": 7}' });
});

test("[P14 P51 P52 P58] events and batches of them are published", async (t) => {
  const { call } = sdk(t);
  const names = [channelName(), channelName()];
  const { client, frames } = pusherClient(t);
  for (const name of names) await subscribe(client, name);
  assert.deepEqual(await call("trigger", names, "news", { text: "żółw" }), {});
  assert.deepEqual(await call("trigger", names[0], "own", "x", client.connection.socket_id), {});
  const batch = names.map((channel, n) => ({ channel, name: "batched", data: { n } }));
  assert.deepEqual(await call("trigger_batch", batch, true), {});
  const heard = await frames.when("all of it", (all) => {
    const events = all.filter(({ event }) => !event.startsWith("pusher"));
    return events.length >= 4 && events;
  });
  const of = (name) => heard.filter(({ channel }) => channel === name).map(({ event, data }) => [event, data]);
  assert.deepEqual(of(names[0]), [["news", { text: "żółw" }], ["batched", { n: 0 }]]);
  assert.deepEqual(of(names[1]), [["news", { text: "żółw" }], ["batched", { n: 1 }]]);
});

test("[P23 P60 P61 P63] channels, a channel and its users are told of", async (t) => {
  const { call } = sdk(t);
  const name = channelName("presence-");
  const authorize = async ({ socketId, channelName: channel }, callback) => {
    callback(null, await call("authenticate", channel, socketId, { user_id: "ann", user_info: { name: "Ann" } }));
  };
  const { client } = pusherClient(t, { channelAuthorization: { customHandler: authorize } });
  const channel = await subscribe(client, name);
  assert.deepEqual(channel.members.me, { id: "ann", info: { name: "Ann" } });
  assert.deepEqual((await call("users_info", name)).users, [{ id: "ann" }]);
  const { occupied, user_count } = await call("channel_info", name, ["user_count"]);
  assert.deepEqual([occupied, user_count], [true, 1]);
  const { channels } = await call("channels_info", name.slice(0, -2), ["user_count"]);
  assert.deepEqual(channels, { [name]: { user_count: 1 } });
});

test("[P38 P39] users sign in and are sent events", async (t) => {
  const { call } = sdk(t);
  const raw = new RawClient(t);
  const { socket_id } = await raw.established();
  const id = channelName("ann-");
  raw.send("pusher:signin", await call("authenticate_user", socket_id, { id, name: "Ann" }));
  await raw.frame("pusher:signin_success");
  assert.deepEqual(await call("send_to_user", id, "hello", { n: 1 }), {});
  assert.equal((await raw.frame("hello", `#server-to-user-${id}`)).data, '{"n": 1}');
  // Its terminate_user_connections (3.3.4) asks for a path without an app, which no server has.
});

test("[P53 P55] what is refused is an error that says why", async (t) => {
  const wrong = await sdk(t, { secret: "wrong" }).ask("trigger", channelName(), "e", "x");
  assert.equal(wrong.error, "PusherBadAuth");
  assert.match(wrong.message, /signature/);
  const reserved = await sdk(t).ask("trigger", channelName(), "pusher:x", "x");
  assert.equal(reserved.error, "PusherBadRequest");
  assert.match(reserved.message, /reserved/);
});
