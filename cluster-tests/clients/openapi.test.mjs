// The description of the HTTP API (docs/reference/openapi.json) against the server. Each
// answer is held to what is described of its operation: status, headers and body. So is
// each request: one that is served has to fit its schemas, and one that is refused as not
// understood must not. In the end all that is described has come, or is excused below.

import assert from "node:assert/strict";
import { createHash, createHmac } from "node:crypto";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Validator } from "@seriousme/openapi-schema-validator";
import { Ajv2020 } from "ajv/dist/2020.js";
import { DEADLINE_MS, RawClient, app, channelName, server, signature } from "./support.mjs";

/** What is described and cannot be had of one server without faults, by the reason: codes, and answers without one. */
const EXCUSED = {
  "the app is enabled, allows any origin and has no bounds": [
    "app_disabled", "upApp 403", "upAppHead 403", "forbidden_origin", "rate_limited", "over_quota",
  ],
  "the server is not full": ["over_capacity", "acceptTraffic 503", "acceptTrafficHead 503"],
  "the owner of each channel is in the same process and answers": ["unavailable", "overloaded", "unknown_outcome"],
  "no namespace requires a standby": ["no_standby", "unprotected"],
  "it takes 131,072 keys": ["idempotency_full"],
};

const page = (name) => readFileSync(new URL(`../../docs/reference/${name}`, import.meta.url), "utf8");
const written = JSON.parse(page("openapi.json"));
/** The same without references: what one leads to stands in its place. */
const api = (function whole(it) {
  if (typeof it !== "object" || it === null) return it;
  if (Array.isArray(it)) return it.map(whole);
  const { $ref, ...rest } = it;
  const there = $ref && whole($ref.split("/").slice(1).reduce((outer, part) => outer[part], written));
  return { ...there, ...Object.fromEntries(Object.entries(rest).map(([name, part]) => [name, whole(part)])) };
})(written);

const [ofJson, ofText] = [false, true].map((coerceTypes) => {
  return new Ajv2020({ strict: true, strictTypes: false, strictRequired: false, coerceTypes });
});
/** What a schema does not allow in a value; empty: nothing. Parameters and headers are text, whatever that means. */
const faults = (schema, value, by = ofJson) => (by.validate(schema, value) ? "" : by.errorsText());

const operations = Object.entries(api.paths).flatMap(([path, { parameters: shared = [], ...methods }]) =>
  Object.entries(methods).map(([method, { operationId: id, parameters = [], ...operation }]) =>
    ({ ...operation, id, path, method: method.toUpperCase(), parameters: [...shared, ...parameters] })),
);
/** Each answer that is described, for each code that it may have. */
const answers = operations.flatMap(({ id, responses }) =>
  Object.entries(responses).flatMap(([status, { content }]) => {
    const codes = content?.["application/json"]?.schema.allOf?.[1].properties.code.enum;
    return codes?.map((code) => ({ status, code, name: `${id} ${status} ${code}` })) ?? { status, name: `${id} ${status}` };
  }),
);
/** The names of answers that have come, and of parameters that were sent. */
const came = new Set();

/** A query with the signature of its request, or with what is wrong with that. */
function signed(method, path, query, body, { secret = app.secret, ...wrong } = {}) {
  const md5 = body && { body_md5: createHash("md5").update(body).digest("hex") };
  const auth_timestamp = Math.floor(Date.now() / 1000);
  const all = { ...query, auth_key: app.key, auth_timestamp, auth_version: "1.0", ...md5, ...wrong };
  const names = Object.keys(all).filter((name) => all[name] !== undefined).sort();
  const lines = [method, path, names.map((name) => `${name}=${all[name]}`).join("&")];
  return { ...all, auth_signature: createHmac("sha256", secret).update(lines.join("\n")).digest("hex"), ...wrong };
}

/** Whether what is sent is what the operation takes. */
function fits({ parameters, requestBody, security }, sent, body) {
  const right = ({ in: place, name, required, schema }) => (name in sent[place] ? !faults(schema, sent[place][name], ofText) : !required);
  const signs = (parts) => "body_md5" in parts === (body !== undefined);
  const taken = body === undefined ? !requestBody?.required : !faults(requestBody.content["application/json"].schema, body);
  return taken && parameters.every(right) && (security.length === 0 || security.some(signs));
}

/** Fails unless an answer is as it is described; its body. */
async function hold(what, response, { headers: known = {}, content }, read = () => response.text()) {
  const headers = new Headers(response.headers);
  for (const [name, { required, schema }] of Object.entries(known)) {
    const value = headers.get(name);
    assert.ok(value !== null || !required, `${what}: ${name} is missing`);
    if (value !== null) assert.equal(faults(schema, value, ofText), "", `${what}: ${name}: ${value}`);
    headers.delete(name);
  }
  for (const name of ["connection", "content-length", "content-type", "date", "keep-alive"]) headers.delete(name);
  assert.deepEqual([...headers], [], `${what}: headers that are not described`);
  const body = await read(response);
  if (content === undefined) return assert.equal(body, "", what);
  const [type] = (response.headers.get("content-type") ?? "").split(";");
  assert.ok(type in content, `${what}: ${type} is not described: ${body}`);
  const told = type === "application/json" ? JSON.parse(body) : body;
  assert.equal(faults(content[type].schema, told), "", `${what}: ${body}`);
  return told;
}

/** Of a stream: what has come when all of that is there. */
async function beginning(response, ...parts) {
  let begun = "";
  for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
    begun += chunk;
    if (begun.endsWith("\n\n") && parts.every((part) => begun.includes(part))) break;
  }
  return begun;
}

const event = { name: "e", channel: "openapi", data: "x" };
/** What each operation is asked unless something else is said. */
const USUAL = {
  publish: { body: event },
  publishBatch: { body: { batch: [event, { ...event, channel: "openapi-2" }] } },
  listUsers: { path: { channel: "presence-openapi" } },
  terminateConnections: { body: {} },
  openEventStream: { query: { channel: ["openapi"] }, read: (response) => beginning(response, "id: ") },
};

/** Asks, and holds the request and its answer to the description; what is told. Without `expected`: it is served. */
async function ask(id, { wrong, beyond = false, ...request } = {}, expected) {
  const operation = operations.find((operation) => operation.id === id);
  const { method, parameters, responses, security } = operation;
  const { path = {}, query = {}, headers = {}, body, read } = { ...USUAL[id], ...request };
  const sent = { path: { app_id: app.id, key: app.key, channel: "openapi", user_id: "zoe", ...path }, query, header: headers };
  const url = new URL(operation.path.replace(/{(\w+)}/g, (_, name) => encodeURIComponent(sent.path[name])), server);
  const bytes = body === undefined || typeof body === "string" ? body : JSON.stringify(body);
  const pairs = security.length ? signed(method, url.pathname, query, bytes, wrong) : query;
  for (const [name, value] of Object.entries(pairs)) for (const one of [value ?? []].flat()) url.searchParams.append(name, one);
  // A stream ends by that, whatever becomes of its test.
  const signal = AbortSignal.timeout(DEADLINE_MS);
  const response = await fetch(url, { method, headers, body: bytes, signal });
  const { status } = response;
  const what = `${id} ${JSON.stringify({ ...request, wrong }).slice(0, 300)}: ${status}`;
  if (!(status in responses)) assert.fail(`${what} is not described: ${await response.text()}`);
  const told = await hold(what, response, responses[status], status === 200 ? read : undefined);
  const outcome = `${status} ${told?.code ?? ""}`.trim();
  assert.equal(outcome, expected ?? Object.keys(responses).find((status) => status < 300), `${what}: ${JSON.stringify(told)}`);
  const fit = fits(operation, sent, body);
  if (status < 300) assert.ok(fit, `${what}, though by the description it cannot be asked`);
  if (status === 400 && !beyond) assert.ok(!fit, `${what}, though by the description it can be asked: ${told.error}`);
  came.add(`${id} ${outcome}`);
  const inPath = [...operation.path.matchAll(/{(\w+)}/g)].map(([, name]) => name);
  for (const name of [...inPath, ...Object.keys(query), ...Object.keys(headers)]) {
    assert.ok(parameters.some((parameter) => parameter.name === name), `${name} of ${id} is not described`);
    came.add(`${id} ${name}`);
  }
  return told;
}

test("[P92] the description is valid, its examples fit, and its codes are those of the page of errors", async () => {
  const { valid, errors } = await new Validator().validate(written);
  assert.ok(valid, JSON.stringify(errors));
  assert.equal(page("openapi.json"), `${JSON.stringify(written, null, 2)}\n`);
  (function look(it) {
    if (typeof it !== "object" || it === null) return;
    // A list stands in a schema, anything else beside one.
    const isSchema = Array.isArray(it.examples);
    for (const example of Object.values(it.examples ?? {})) {
      assert.equal(faults(isSchema ? it : it.schema, isSchema ? example : example.value), "", JSON.stringify(example));
    }
    Object.values(it).forEach(look);
  })(api);
  const rows = page("errors.md").matchAll(/^\| `(\w+)` \| (\d+) \|/gm);
  const statuses = Object.fromEntries([...rows].map(([, code, status]) => [code, status]));
  assert.deepEqual(api.components.schemas.Error.properties.code.enum, Object.keys(statuses));
  for (const { name, code, status } of answers.filter(({ code }) => code)) assert.equal(statuses[code], status, name);
  // What any request of an app can meet and most are excused from here.
  for (const { id, responses } of operations.filter(({ responses }) => "400" in responses)) {
    for (const status of [403, 404, 429, 503]) assert.ok(status in responses, `${status} of ${id}`);
    for (const status of [429, 503]) assert.ok(responses[status].headers["Retry-After"].required, `${status} of ${id}`);
  }
});

test("[P92] what is asked well is answered", async (t) => {
  for (const { id } of operations) await ask(id);
  const room = channelName("presence-cache-");
  const raw = new RawClient(t);
  const { socket_id } = await raw.established();
  const channelData = JSON.stringify({ user_id: "zoe" });
  raw.send("pusher:subscribe", { channel: room, auth: signature(socket_id, room, { channelData }), channel_data: channelData });
  await raw.frame("pusher_internal:subscription_succeeded", room);
  await raw.subscribe(channelName());

  const has = (it, ...names) => assert.deepEqual(Object.keys(it).sort(), names);
  const info = "user_count,cache";
  const once = channelName();
  const headers = { "Idempotency-Key": once, "X-Idempotency-Key": once };
  for (const data of ["x", 1, true, [], { n: 1 }]) {
    const body = { name: "e", channels: [room], data, socket_id, info };
    has((await ask("publish", { body })).channels[room], "cache", "user_count");
  }
  const keyed = { ...event, channel: room, socket_id, info, idempotency_key: once };
  const { batch } = await ask("publishBatch", { body: { batch: [event, keyed] }, headers });
  has(batch[0]);
  has(batch[1], "cache", "user_count");
  await ask("publish", { headers });
  await ask("publish", { body: { ...event, channel: "#server-to-user-zoe" } });
  has(await ask("getChannel", { path: { channel: room }, query: { info } }), "cache", "complete", "occupied", "user_count");
  assert.deepEqual((await ask("listUsers", { path: { channel: room } })).users, [{ id: "zoe" }]);
  const counted = await ask("listChannels", { query: { filter_by_prefix: room, info: "user_count" } });
  assert.deepEqual(counted.channels, { [room]: { user_count: 1 } });
  const { cursor } = await ask("listChannels", { query: { limit: 1 } });
  assert.notEqual(cursor, undefined);
  await ask("listChannels", { query: { limit: 1, cursor } });
  await ask("terminateConnections", { body: undefined });
  await ask("askToOpenEventStream", { path: { key: "nobody" } });
});

test("[P92] event streams begin with what is kept, and with gaps", async () => {
  const channel = channelName("cache-");
  await ask("publish", { body: { name: "news", channel, data: "first\nsecond" } });
  const told = await ask("openEventStream", { query: { channel: [channel] }, read: (response) => beginning(response, "second") });
  assert.match(told, /^event: news\ndata: first\ndata: second\nid: /m);
  const lost = `-,${"1".padStart(16, "0")}-1`;
  for (const [query, headers] of [[{ last_event_id: lost }, {}], [{}, { "Last-Event-ID": lost }]]) {
    const told = await ask("openEventStream", {
      query: { channel: [channel, "openapi"], envelope: "true", ...query },
      headers,
      read: (response) => beginning(response, "event: gap", "news"),
    });
    for (const [, gap, data] of told.matchAll(/^(event: gap\n)?data: (.*)$/gm)) {
      assert.equal(faults(api.components.schemas[gap ? "Gap" : "Message"], JSON.parse(data)), "", data);
    }
  }
});

test("[P92] each part of the signature has to be there, and to be right", async () => {
  for (const { id, security: [parts] } of operations.filter(({ security }) => security.length)) {
    for (const part of Object.keys(parts)) await ask(id, { wrong: { [part]: undefined } }, "401 missing_signature");
    for (const wrong of [{ secret: "another" }, { auth_key: "another" }, ...("body_md5" in parts ? [{ body_md5: "00" }] : [])]) {
      await ask(id, { wrong }, "401 bad_signature");
    }
    await ask(id, { wrong: { auth_timestamp: Math.floor(Date.now() / 1000) - 700 } }, "401 stale_timestamp");
  }
});

test("[P92] what cannot be understood by the description is not understood by the server", async () => {
  const one = (changed) => ({ body: { ...event, ...changed } });
  const batch = (...events) => ({ body: { batch: events } });
  const other = (changed) => batch({ ...event, ...changed });
  const many = (count) => Array.from({ length: count }, (_, number) => `c${number}`);
  const keys = (key, other = key) => ({ headers: { "Idempotency-Key": key, "X-Idempotency-Key": other } });
  // What no schema says.
  const beyond = (request) => ({ ...request, beyond: true });
  const wrong = {
    publish: [
      { body: undefined }, { body: "no JSON" }, { body: [event] },
      ...["", "pusher:x", "pusher_internal:x", "dunlin:x", "a\nb", "x".repeat(201), undefined].map((name) => one({ name })),
      ...[null, undefined].map((data) => one({ data })),
      ...["", "a b", "#x", "x".repeat(201), ["a"], undefined].map((channel) => one({ channel })),
      ...[[], many(101), ["a b"], "a"].map((channels) => one({ channel: undefined, channels })),
      ...[{ channels: ["a"] }, { socket_id: "1" }, { info: "colour" }, { idempotency_key: "k" }].map(one),
      ...["a b", "x".repeat(256)].map((key) => keys(key)),
      ...[one({ info: "user_count" }), one({ channel: undefined, channels: ["a", "private-encrypted-b"] }), keys("a", "b")].map(beyond),
    ],
    publishBatch: [
      { body: undefined }, { body: {} }, batch(), batch(...Array(11).fill(event)), keys("a b"),
      ...[{ name: "" }, { name: undefined }, { data: null }, { data: undefined }, { channel: "a b" }, { channel: undefined }].map(other),
      ...[{ channels: ["a"] }, { socket_id: "1" }, { info: "colour" }, { idempotency_key: "a b" }].map(other),
    ],
    getChannel: [{ path: { channel: "a b" } }, { query: { info: "colour" } }, beyond({ query: { info: "user_count" } })],
    listUsers: [{ path: { channel: "a b" } }, beyond({ path: { channel: "room" } })],
    listChannels: [
      ...[0, 10_001, "many"].map((limit) => ({ query: { limit } })),
      ...["colour", "cache"].map((info) => ({ query: { info } })),
      { query: { limit: 1, cursor: "x" } }, beyond({ query: { cursor: "1:a" } }), beyond({ query: { info: "user_count" } }),
    ],
    terminateConnections: ["x".repeat(129), "a\n"].map((user_id) => ({ path: { user_id } })),
    openEventStream: [
      { query: {} }, ...[["a b"], many(65)].map((channel) => ({ query: { channel } })),
      ...[{ envelope: "1" }, { last_event_id: "x" }].map((it) => ({ query: { channel: ["a"], ...it } })),
      { headers: { "Last-Event-ID": "x" } }, beyond({ headers: { "Last-Event-ID": "-,-" } }),
    ],
  };
  for (const [id, requests] of Object.entries(wrong)) {
    for (const request of requests) await ask(id, request, "400 bad_request");
  }
});

test("[P92] what is unknown, too large, another request or not allowed is refused", async () => {
  for (const { id, tags } of operations.filter(({ path, method }) => /{app_id}|{key}/.test(path) && method !== "OPTIONS")) {
    await ask(id, { path: { app_id: "nobody", key: "nobody" } }, tags.includes("Probes") ? "404" : "404 unknown_app");
  }
  const large = { ...event, data: "x".repeat(100 * 1024 + 1) };
  await ask("publish", { body: large }, "413 too_large");
  await ask("publishBatch", { body: { batch: [event, large] } }, "413 too_large");
  await ask("terminateConnections", { body: large }, "413 too_large");
  const headers = { "Idempotency-Key": channelName() };
  for (const [id, body] of [["publish", event], ["publishBatch", { batch: [event] }]]) {
    await ask(id, { body, headers });
    await ask(id, { body: JSON.stringify(body, null, 1), headers }, "422 idempotency_mismatch");
  }
  await ask("openEventStream", { query: { channel: ["a", "private-a"] } }, "403 forbidden_channel");
});

test("[P92] other methods and other paths are refused, and nothing else is described", async () => {
  const held = async (method, path, { content, ...described }) => {
    const response = await fetch(new URL(path, server), { method });
    await hold(`${method} ${path}: ${response.status}`, response, { ...described, ...(method !== "HEAD" && { content }) });
    return response;
  };
  const { MethodNotAllowed, UnknownRoute } = api.components.responses;
  for (const path of Object.keys(api.paths)) {
    const known = operations.filter((operation) => operation.path === path).map(({ method }) => method);
    for (const method of ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"].filter((method) => !known.includes(method))) {
      const { status, headers } = await held(method, path.replaceAll(/[{}]/g, ""), MethodNotAllowed);
      assert.deepEqual([status, headers.get("allow")], [405, known.filter((method) => method !== "HEAD").join(", ")]);
    }
  }
  for (const path of ["/apps", "/apps/app-id", "/nothing"]) assert.equal((await held("GET", path, UnknownRoute)).status, 404);
});

test("[P92] all that is described has come, or is excused", () => {
  const absent = answers.filter(({ name }) => !came.has(name));
  const excused = Object.values(EXCUSED).flat();
  const missing = absent.filter(({ name, code }) => !excused.includes(code ?? name));
  assert.deepEqual(missing.map(({ name }) => name), [], "answers that have not come");
  const needed = absent.map(({ name, code }) => code ?? name);
  assert.deepEqual(excused.filter((excuse) => !needed.includes(excuse)), [], "excuses that nothing needs");
  const parameters = operations.flatMap(({ id, parameters }) => parameters.map(({ name }) => `${id} ${name}`));
  assert.deepEqual(parameters.filter((name) => !came.has(name)), [], "parameters that no request had");
});
