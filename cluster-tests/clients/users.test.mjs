// Users that sign in, with pusher-js and the server SDK; they are at different gateways,
// if DUNLIN_URLS names several.

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import { Inbox, RawClient, gateways, publisher, pusherClient, within } from "./support.mjs";

/** An id that no other test uses, with what is not allowed in names of channels. */
const userId = (name = "Zoë: ") => `${name}${randomBytes(6).toString("hex")}`;

/** What a backend answers to a page that wants to sign in. */
const authenticated = (socketId, id) => publisher().authenticateUser(socketId, { id, user_info: { name: "Zoë" } });

/** A pusher-js client at one of the gateways that signs in as a user. */
async function signedIn(t, number, id) {
  const customHandler = ({ socketId }, callback) => callback(null, authenticated(socketId, id));
  const { client, frames } = pusherClient(t, { at: gateways[number % gateways.length], userAuthentication: { customHandler } });
  const channel = `#server-to-user-${id}`;
  client.signin();
  await within("signin", client.user.signinDonePromise);
  assert.equal(client.user.user_data.id, id);
  await frames.first("the user's channel", ({ event, channel: of }) => event === "pusher_internal:subscription_succeeded" && of === channel);
  return { client, frames };
}

test("[P38 P39] whoever has signed in gets what is sent to the user, on all connections and nobody else", async (t) => {
  const [zoe, other] = [userId(), userId()];
  const twins = await Promise.all([0, 1].map((number) => signedIn(t, number, zoe)));
  const stranger = await signedIn(t, 1, other);
  const inboxes = [...twins, stranger].map(({ client }) => {
    const inbox = new Inbox();
    client.user.bind("hello", (data) => inbox.push(data));
    return inbox;
  });
  for (const n of [1, 2]) await publisher().sendToUser(zoe, "hello", { n });
  await publisher().sendToUser(other, "hello", { n: 3 });
  for (const inbox of inboxes.slice(0, 2)) {
    await inbox.when("both", ({ length }) => length === 2);
    assert.deepEqual(inbox.items, [{ n: 1 }, { n: 2 }]);
  }
  await inboxes[2].when("one", ({ length }) => length === 1);
  assert.deepEqual(inboxes[2].items, [{ n: 3 }]);
});

test("[P40] a user's channel is open to nobody who has not signed in as that user", async (t) => {
  const [zoe, other] = [userId(), userId()];
  const raw = new RawClient(t);
  const { socket_id } = await raw.established();
  const refused = async (id) => {
    raw.send("pusher:subscribe", { channel: `#server-to-user-${id}` });
    const { data } = await raw.frame("pusher:subscription_error", `#server-to-user-${id}`);
    assert.deepEqual([data.type, data.status], ["AuthError", 401]);
  };
  await refused(other);
  raw.send("pusher:signin", authenticated(socket_id, zoe));
  await raw.frame("pusher:signin_success");
  await refused(userId());
  await raw.subscribe(`#server-to-user-${zoe}`);
});

test("[P38 P41] a wrong signature signs nobody in, and the connection stays", async (t) => {
  const raw = new RawClient(t);
  const { socket_id } = await raw.established();
  const right = authenticated(socket_id, userId());
  const wrong = [
    { ...right, auth: right.auth.replace(/.$/, (last) => (last === "0" ? "1" : "0")) },
    { ...right, user_data: '{"id":"somebody else"}' },
    { user_data: right.user_data },
    { ...right, auth: "another-key:00" },
    authenticated(socket_id, "x".repeat(129)),
  ];
  for (const [number, data] of wrong.entries()) {
    raw.send("pusher:signin", data);
    await raw.frames.when("an error for each", (frames) => frames.filter(({ event, data }) => event === "pusher:error" && data.code === 4009).length === number + 1);
  }
  raw.send("pusher:signin", right);
  const { data } = await raw.frame("pusher:signin_success");
  assert.deepEqual(JSON.parse(data), { user_data: right.user_data });
  raw.send("pusher:signin", authenticated(socket_id, userId()));
  await raw.frames.first("an error", ({ event, data }) => event === "pusher:error" && /already/.test(data.message));
});

test("[P42] all connections of a user are ended at once, and of nobody else", async (t) => {
  const [zoe, other] = [userId(), userId()];
  const twins = await Promise.all([0, 1].map((number) => signedIn(t, number, zoe)));
  const stranger = await signedIn(t, 1, other);
  const raw = new RawClient(t);
  const { socket_id } = await raw.established();
  raw.send("pusher:signin", authenticated(socket_id, zoe));
  await raw.frame("pusher:signin_success");
  await publisher().terminateUserConnections(zoe);
  assert.equal((await raw.closed()).code, 4009);
  for (const { client } of twins) await within("the end", new Promise((resolve) => {
    const look = () => (client.connection.state === "disconnected" || client.connection.state === "failed") && resolve();
    client.connection.bind("state_change", look);
    look();
  }));
  // Nobody is kept out: a backend that wants that stops signing.
  await signedIn(t, 0, zoe);
  const hello = new Promise((resolve) => stranger.client.user.bind("hello", resolve));
  await publisher().sendToUser(other, "hello", "still here");
  assert.equal(await within("hello", hello), "still here");
});

test("[P43 P53] clients cannot publish to users, and names of the server's own are refused", async (t) => {
  const zoe = userId();
  const raw = new RawClient(t);
  const { socket_id } = await raw.established();
  raw.send("pusher:signin", authenticated(socket_id, zoe));
  await raw.frame("pusher:signin_success");
  raw.socket.send(JSON.stringify({ event: "client-x", channel: `#server-to-user-${zoe}`, data: {} }));
  await raw.frames.first("a refusal", ({ event, data }) => event === "pusher:error" && data.code === 4301);
  const refused = await publisher().sendToUser(zoe, "dunlin:terminate", {}).catch((error) => error);
  assert.equal(refused.status, 400);
});
