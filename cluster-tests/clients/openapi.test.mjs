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
import { DEADLINE_MS, RawClient, app, channelName, server, signature, unless, withoutApp } from "./support.mjs";

/** What is described and cannot be had of one server without faults, by the reason: codes, and answers without one. */
const EXCUSED = {
  "no app is bound in how often it may ask": ["rate_limited"],
  "the server is not full": ["over_capacity", "acceptTraffic 503", "acceptTrafficHead 503"],
  "the owner of each channel is in the same process and answers": ["unavailable", "overloaded", "unknown_outcome"],
  "no namespace requires a standby": ["no_standby", "unprotected"],
  "it takes 131,072 keys": ["idempotency_full"],
};
/** What takes an app of apps.toml, by its id: excused where the server does not have it. */
const OF_APPS = {
  disabled: ["app_disabled", "upApp 403", "upAppHead 403"],
  strict: ["forbidden_origin"],
  small: ["over_quota"],
};
/** Schemas of requests, which may have more members than are described. */
const OF_REQUESTS = ["Event", "Batch", "BatchEvent"];
/** Members of other schemas that need not be there. */
const OPTIONAL = {
  Attributes: ["user_count", "subscription_count", "cache"],
  Published: ["channels"],
  PublishedBatch: ["batch"],
  Channels: ["cursor"],
  Counts: ["user_count", "subscription_count"],
  Channel: ["user_count", "subscription_count", "cache"],
};

/** An app of apps.toml. */
const another = (id) => ({ id, key: `${id}-key`, secret: `${id}-secret` });
const strict = { ...another("strict"), origins: ["https://example.com"] };
const nobody = another("nobody");

const page = (name) => readFileSync(new URL(`../../docs/reference/${name}`, import.meta.url), "utf8");
const written = JSON.parse(page("openapi.json"));
const behind = ({ $ref }) => $ref.split("/").slice(1).reduce((outer, part) => outer[part], written);
/** The same without references: what one leads to stands in its place. */
const api = (function whole(it) {
  if (typeof it !== "object" || it === null) return it;
  if (Array.isArray(it)) return it.map(whole);
  const { $ref, ...rest } = it;
  return { ...($ref && whole(behind(it))), ...Object.fromEntries(Object.entries(rest).map(([name, part]) => [name, whole(part)])) };
})(written);

const [ofJson, ofText] = [false, true].map((coerceTypes) => {
  return new Ajv2020({ strict: true, strictTypes: false, strictRequired: false, coerceTypes });
});
/** What a schema does not allow in a value; empty: nothing. Parameters and headers are text, whatever that means. */
const faults = (schema, value, by = ofJson) => (by.validate(schema, value) ? "" : by.errorsText());

const operations = Object.entries(api.paths).flatMap(([path, { parameters: shared = [], ...methods }]) =>
  Object.entries(methods).map(([method, { operationId: id, parameters = [], security, ...operation }]) => ({
    ...operation,
    id,
    path,
    method: method.toUpperCase(),
    parameters: [...shared, ...parameters],
    // Which schemes go together, one such or another; without any: that nothing is sent.
    security: security.length ? security : [{}],
  })),
);
const { BadRequest, MethodNotAllowed, UnknownRoute } = api.components.responses;
/** What is answered where no operation is described. */
const elsewhere = { id: "elsewhere", responses: { 400: BadRequest, 404: UnknownRoute, 405: MethodNotAllowed } };
/** Each answer that is described, for each code that it may have. */
const answers = [...operations, elsewhere].flatMap(({ id, responses }) =>
  Object.entries(responses).flatMap(([status, { content }]) => {
    const codes = content?.["application/json"]?.schema.allOf?.[1].properties.code.enum;
    return codes?.map((code) => ({ status, code, name: `${id} ${status} ${code}` })) ?? { status, name: `${id} ${status}` };
  }),
);
/** Whether pages may ask: answers say who of them reads them. */
const isForPages = ({ path, method }) => method !== "OPTIONS" && operations.some((other) => other.path === path && other.method === "OPTIONS");
/** Whether it is asked of an app. */
const isOfApp = ({ path, method }) => method !== "OPTIONS" && /{app_id}|{key}/.test(path);
/** Whether this may be, or be a part of, what shows who asks. */
const takes = ({ security }, scheme) => security.some((together) => scheme in together);

/** The names of answers that have come, and of what was sent and served. */
const came = new Set();

const seconds = () => Math.floor(Date.now() / 1000);
const hmac = (secret, text, encoding) => createHmac("sha256", secret).update(text).digest(encoding);

/** The parts of the signature of a request, or what is wrong with them. */
function signed(of, method, query, body, { secret = of.secret, path, ...wrong }) {
  const md5 = body && { body_md5: createHash("md5").update(body).digest("hex") };
  const parts = { auth_key: of.key, auth_timestamp: seconds(), auth_version: "1.0", ...md5, ...wrong };
  const all = { ...query, ...parts };
  const names = Object.keys(all).filter((name) => all[name] !== undefined).sort();
  const lines = [method, path, names.map((name) => `${name}=${all[name]}`).join("&")];
  return { ...parts, auth_signature: hmac(secret, lines.join("\n"), "hex"), ...wrong };
}

/** A token of an app, or what is none. */
function token(claims, { kid = app.key, alg = "HS256", secret = app.secret } = {}) {
  const part = (json) => Buffer.from(JSON.stringify(json)).toString("base64url");
  const text = `${part({ alg, kid })}.${part({ exp: seconds() + 60, ...claims })}`;
  return `${text}.${hmac(secret, text, "base64url")}`;
}

/** Whether what is sent is what the operation takes. */
function fits({ parameters, requestBody, security }, sent, by, body) {
  const right = ({ in: place, name, required, schema }) => (name in sent[place] ? !faults(schema, sent[place][name], ofText) : !required);
  const names = (of) => Object.keys(of).sort().join();
  const taken = body === undefined ? !requestBody?.required : !faults(requestBody.content["application/json"].schema, body);
  return taken && parameters.every(right) && security.some((together) => names(together) === names(by));
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

/**
 * Asks, and holds the request and its answer to the description; what is told. Without `expected`: it is served.
 * `by` has what is sent of the security schemes, `sign` what is otherwise about a signature, `origin` whose page asks.
 */
async function ask(id, { of = app, by, sign, origin, beyond = false, ...request } = {}, expected) {
  const operation = operations.find((operation) => operation.id === id);
  const { method, parameters, responses } = operation;
  const { path = {}, query = {}, headers = {}, body, read } = { ...USUAL[id], ...request };
  const sent = { path: { app_id: of.id, key: of.key, channel: "openapi", user_id: "zoe", ...path }, query, header: headers };
  const url = new URL(operation.path.replace(/{(\w+)}/g, (_, name) => encodeURIComponent(sent.path[name])), server);
  const bytes = body === undefined || typeof body === "string" ? body : JSON.stringify(body);
  by ??= takes(operation, "auth_signature") ? signed(of, method, query, bytes, { path: url.pathname, ...sign }) : {};
  const pairs = { ...query };
  const head = { ...headers, ...(origin && { origin }) };
  for (const [name, value] of Object.entries(by)) {
    const scheme = api.components.securitySchemes[name];
    if (scheme.type === "http") head.authorization = `${scheme.scheme} ${value}`;
    else pairs[scheme.name] = value;
  }
  for (const [name, value] of Object.entries(pairs)) for (const one of [value ?? []].flat()) url.searchParams.append(name, one);
  // A stream ends by that, whatever becomes of its test.
  const signal = AbortSignal.timeout(DEADLINE_MS);
  const response = await fetch(url, { method, headers: head, body: bytes, signal });
  const { status } = response;
  const what = `${id} ${JSON.stringify({ of: of.id, by, sign, origin, ...request }).slice(0, 300)}: ${status}`;
  if (!(status in responses)) assert.fail(`${what} is not described: ${await response.text()}`);
  const told = await hold(what, response, responses[status], status === 200 ? read : undefined);
  const outcome = `${status} ${told?.code ?? ""}`.trim();
  assert.equal(outcome, expected ?? Object.keys(responses).find((status) => status < 300), `${what}: ${JSON.stringify(told)}`);
  const readers = ["access-control-allow-origin", "vary"].map((name) => response.headers.get(name));
  assert.deepEqual(readers, readersOf(operation, of, origin, told?.code), `${what}: who may read it`);
  const fit = fits(operation, sent, by, body);
  if (status < 300) assert.ok(fit, `${what}, though by the description it cannot be asked`);
  if (status === 400 && !beyond) assert.ok(!fit, `${what}, though by the description it can be asked: ${told.error}`);
  came.add(`${id} ${outcome}`);
  const inPath = [...operation.path.matchAll(/{(\w+)}/g)].map(([, name]) => name);
  const names = [...inPath, ...Object.keys(query), ...Object.keys(headers)];
  for (const name of names) assert.ok(parameters.some((parameter) => parameter.name === name), `${name} of ${id} is not described`);
  if (status < 300) for (const name of [...names, ...Object.keys(by)]) came.add(`${id} ${name}`);
  return told;
}

/** Asks what no operation is; the answer. */
async function askElsewhere(method, path, expected, init) {
  const response = await fetch(new URL(path, server), { method, ...init });
  const { content, ...described } = elsewhere.responses[expected];
  const what = `${method} ${path}: ${response.status}`;
  assert.equal(response.status, expected, what);
  const told = await hold(what, response, { ...described, ...(method !== "HEAD" && { content }) });
  if (told) came.add(`${elsewhere.id} ${expected} ${told.code}`);
  return response;
}

/** Which page may read an answer, and whether that depends on it, as its headers say. */
function readersOf(operation, { origins, ...of }, origin, code) {
  const isAsked = operation.method === "OPTIONS" || isForPages(operation);
  if (!isAsked || of.id === nobody.id || code === "forbidden_origin") return [null, null];
  if (origins === undefined) return ["*", null];
  return [origins.includes(origin) ? origin : null, "origin"];
}

/** Fails unless something has these members and no others. */
const has = (it, ...names) => assert.deepEqual(Object.keys(it).sort(), names);

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
  assert.deepEqual(api.components.schemas.ErrorCode.enum, Object.keys(statuses));
  for (const { name, code, status } of answers.filter(({ code }) => code)) assert.equal(statuses[code], status, name);
  // What any request of an app can meet and most are excused from here.
  for (const { id, responses } of operations.filter(({ responses }) => "400" in responses)) {
    for (const status of [401, 403, 404, 429, 503]) assert.ok(status in responses, `${status} of ${id}`);
    for (const status of [429, 503]) assert.ok(responses[status].headers["Retry-After"].required, `${status} of ${id}`);
  }
  for (const { id, responses } of operations.filter(isForPages)) {
    for (const [status, { headers }] of Object.entries(responses).filter(([status]) => status !== "404")) {
      for (const name of ["Access-Control-Allow-Origin", "Vary"]) assert.ok(name in headers, `${name} of ${id} ${status}`);
    }
  }
});

test("[P92] what is described of answers is all that may come, and what has to", () => {
  for (const [name, schema] of Object.entries(written.components.schemas).filter(([name]) => !OF_REQUESTS.includes(name))) {
    (function look(it, optional) {
      if (typeof it !== "object" || it === null) return;
      if (it.type === "object" || "properties" in it) {
        const { properties = {}, propertyNames, required = [], additionalProperties: others } = it;
        const isMap = propertyNames !== undefined && others?.$ref !== undefined;
        assert.ok(it.type === "object" && (isMap ? !it.properties : others === false), `${name} is open: ${JSON.stringify(it)}`);
        const needed = Object.keys(properties).filter((member) => !optional.includes(member));
        assert.deepEqual(required, needed, `what ${name} requires`);
      }
      for (const inner of Object.values(it)) look(inner, []);
    })(schema, OPTIONAL[name] ?? []);
  }
  const whole = (schema) => {
    has(schema, "$ref");
    assert.ok(!OF_REQUESTS.some((name) => schema.$ref.endsWith(`/${name}`)), `${schema.$ref} is open`);
  };
  const { MethodNotAllowed: others, UnknownRoute: nothing } = written.components.responses;
  const described = Object.values(written.paths).flatMap((methods) => Object.values(methods)).map(({ responses = {} }) => responses);
  for (const [status, it] of [...described, { 404: nothing, 405: others }].flatMap(Object.entries)) {
    const { schema } = ("$ref" in it ? behind(it) : it).content?.["application/json"] ?? {};
    if (schema === undefined) continue;
    if (status < 300) {
      whole(schema);
      continue;
    }
    const [problem, { properties }] = schema.allOf;
    whole(problem);
    assert.deepEqual(schema, { allOf: [problem, { properties: { status: { const: Number(status) }, code: { enum: properties.code.enum } } }] });
  }
});

test("[P92] what is asked well is answered", async (t) => {
  for (const { id } of operations) await ask(id);
  for (const { id } of operations.filter(({ method }) => method === "OPTIONS")) await ask(id, { of: nobody });
  const room = channelName("presence-cache-");
  const raw = new RawClient(t);
  const { socket_id } = await raw.established();
  const channelData = JSON.stringify({ user_id: "zoe" });
  raw.send("pusher:subscribe", { channel: room, auth: signature(socket_id, room, { channelData }), channel_data: channelData });
  await raw.frame("pusher_internal:subscription_succeeded", room);
  await raw.subscribe(channelName());

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

  // A user's own channel is listed for whoever asks for such.
  const user_id = channelName("zoe ");
  const user_data = JSON.stringify({ id: user_id });
  raw.send("pusher:signin", { user_data, auth: signature(socket_id, ":user:", { channelData: user_data }) });
  await raw.frame("pusher:signin_success");
  for (const prefix of ["", "#"]) {
    const { channels } = await ask("listChannels", { query: { filter_by_prefix: prefix } });
    assert.equal(`#server-to-user-${user_id}` in channels, prefix === "#");
  }
  const path = `/apps/${app.id}/users/${user_id}/terminate_connections`;
  await ask("terminateConnections", { path: { user_id }, sign: { path }, body: undefined });
  assert.equal((await raw.closed()).code, 4009);
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
  for (const { id, security: [parts] } of operations.filter((operation) => takes(operation, "auth_signature"))) {
    for (const part of Object.keys(parts)) await ask(id, { sign: { [part]: undefined } }, "401 missing_signature");
    for (const sign of [{ secret: "another" }, { auth_key: "another" }, { path: "/" }, ...("body_md5" in parts ? [{ body_md5: "00" }] : [])]) {
      await ask(id, { sign }, "401 bad_signature");
    }
    await ask(id, { sign: { auth_timestamp: seconds() - 700 } }, "401 stale_timestamp");
  }
});

test("[P92] a token stands for a signature where it may, as far as it goes", async () => {
  const [mine, other] = [channelName("private-"), channelName("private-encrypted-")];
  const good = token({ publish: [mine], subscribe: [mine] });
  const wrong = [
    "x", token({}, { secret: "another" }), token({}, { kid: "another" }), token({}, { alg: "none" }), token({ exp: "soon" }),
    token({ nbf: seconds() + 60 }), token({ publish: mine }), token({ publish: Array(65).fill(mine) }),
  ];
  for (const scheme of ["bearer", "token"]) {
    for (const { id } of operations.filter((operation) => takes(operation, scheme))) {
      for (const bad of wrong) await ask(id, { by: { [scheme]: bad } }, "401 bad_token");
      await ask(id, { by: { [scheme]: token({ exp: seconds() }) } }, "401 expired_token");
    }
  }
  for (const { id } of operations.filter((operation) => takes(operation, "auth_signature") && !takes(operation, "bearer"))) {
    await ask(id, { by: { bearer: good } }, "401 missing_signature");
  }

  const bodies = (...channels) => ({
    publish: { ...event, channel: undefined, channels },
    publishBatch: { batch: channels.map((channel) => ({ ...event, channel })) },
  });
  for (const [id, body] of Object.entries(bodies(mine))) await ask(id, { by: { bearer: good }, body });
  for (const [id, body] of Object.entries(bodies(mine, "openapi"))) await ask(id, { by: { bearer: good }, body }, "403 forbidden_channel");
  const bearer = token({ publish: ["presence-*"] });
  await ask("publish", { by: { bearer }, body: { ...event, channel: "presence-openapi", info: "user_count" }, beyond: true }, "400 bad_request");

  for (const scheme of ["bearer", "token"]) {
    const by = { [scheme]: token({ subscribe: ["private-*"] }) };
    await ask("openEventStream", { by, query: { channel: [mine, other, "openapi"] } });
    await ask("openEventStream", { by: { [scheme]: good }, query: { channel: [mine, other] } }, "403 forbidden_channel");
    const all = token({ subscribe: ["*", "#*"] });
    for (const channel of ["presence-openapi", "#server-to-user-zoe"]) {
      await ask("openEventStream", { by: { [scheme]: all }, query: { channel: [channel] } }, "403 forbidden_channel");
    }
  }
  await ask("openEventStream", { query: { channel: [mine] } }, "403 forbidden_channel");
  await ask("openEventStream", { by: { bearer: "x", token: good } }, "401 bad_token");
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
      ...["user_count", "subscription_count", "cache"].map((info) => beyond(one({ info }))),
      ...[one({ channel: undefined, channels: ["a", "private-encrypted-b"] }), keys("a", "b")].map(beyond),
    ],
    publishBatch: [
      { body: undefined }, { body: {} }, batch(), batch(...Array(11).fill(event)), keys("a b"),
      ...[{ name: "" }, { name: undefined }, { data: null }, { data: undefined }, { channel: "a b" }, { channel: undefined }].map(other),
      ...[{ channels: ["a"] }, { socket_id: "1" }, { info: "colour" }, { idempotency_key: "a b" }].map(other),
      ...["user_count", "subscription_count", "cache"].map((info) => beyond(other({ info }))),
    ],
    getChannel: [
      { path: { channel: "a b" } }, { query: { info: "colour" } },
      ...["user_count", "subscription_count", "cache"].map((info) => beyond({ query: { info } })),
    ],
    listUsers: [{ path: { channel: "a b" } }, beyond({ path: { channel: "room" } })],
    listChannels: [
      ...[0, 10_001, "many"].map((limit) => ({ query: { limit } })),
      ...["colour", "cache"].map((info) => ({ query: { info } })),
      { query: { limit: 1, cursor: "x" } }, beyond({ query: { cursor: "1:a" } }), beyond({ query: { limit: 1, cursor: "65535:a" } }),
      ...["user_count", "subscription_count"].map((info) => beyond({ query: { info } })),
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
  for (const { id, tags } of operations.filter(isOfApp)) {
    await ask(id, { of: nobody }, tags.includes("Probes") ? "404" : "404 unknown_app");
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
  const again = { ...event, data: "y", idempotency_key: channelName() };
  await ask("publishBatch", { body: { batch: [again] } });
  const batch = [event, { ...again, data: "z" }];
  const { accepted, failed, failed_events: places } = await ask("publishBatch", { body: { batch } }, "422 idempotency_mismatch");
  assert.deepEqual([accepted, failed, places], [[event.channel], [event.channel], [1]]);
});

unless(withoutApp("counted"))("[P92] an app that counts is told how many there are, and may name less than others", async (t) => {
  const of = another("counted");
  const room = channelName("cache-");
  const raw = new RawClient(t, `/app/${of.key}?protocol=7`);
  await raw.established();
  await raw.subscribe(room);
  const info = "subscription_count,cache";
  const one = { ...event, channel: room, info };
  has((await ask("publish", { of, body: one })).channels[room], "cache", "subscription_count");
  has((await ask("publishBatch", { of, body: { batch: [one] } })).batch[0], "cache", "subscription_count");
  has(await ask("getChannel", { of, path: { channel: room }, query: { info } }), "cache", "complete", "occupied", "subscription_count");
  const { channels } = await ask("listChannels", { of, query: { filter_by_prefix: room, info: "subscription_count" } });
  has(channels[room], "subscription_count");
  await ask("listChannels", { of, query: { filter_by_prefix: "presence-", info: "user_count,subscription_count" } });

  const channel = "x".repeat(41);
  const larger = {
    publish: [{ channel }, { name: "x".repeat(21) }, { channel: undefined, channels: ["a", "b", "c"] }].map((it) => ({ body: { ...event, ...it } })),
    publishBatch: [{ body: { batch: [event, event, event] } }, { body: { batch: [{ ...event, channel }] } }],
    openEventStream: [{ query: { channel: [channel] } }],
  };
  for (const [id, requests] of Object.entries(larger)) {
    for (const request of requests) await ask(id, { of, ...request, beyond: true }, "400 bad_request");
  }
});

unless(withoutApp("disabled"))("[P92] a disabled app is refused", async () => {
  for (const { id, tags } of operations.filter(isOfApp)) {
    await ask(id, { of: another("disabled") }, tags.includes("Probes") ? "403" : "403 app_disabled");
  }
});

unless(withoutApp("small"))("[P92] one stream more than an app may have is refused", async () => {
  const of = another("small");
  const read = async (response) => {
    await ask("openEventStream", { of }, "503 over_quota");
    return beginning(response, "id: ");
  };
  await ask("openEventStream", { of, read });
});

unless(withoutApp("strict"))("[P92] pages of origins that an app allows read its answers, others do not", async () => {
  for (const origin of [undefined, ...strict.origins, "https://elsewhere.example"]) {
    for (const { id } of operations.filter(({ method }) => method === "OPTIONS")) await ask(id, { of: strict, origin });
    for (const id of ["publish", "publishBatch"]) {
      await ask(id, { of: strict, origin });
      await ask(id, { of: strict, origin, by: { bearer: "x" } }, "401 bad_token");
    }
    const isForeign = origin !== undefined && !strict.origins.includes(origin);
    await ask("openEventStream", { of: strict, origin }, isForeign ? "403 forbidden_origin" : undefined);
    if (!isForeign) await ask("openEventStream", { of: strict, origin, query: {} }, "400 bad_request");
  }
  const [origin] = strict.origins;
  const { headers } = await askElsewhere("PUT", `/apps/${strict.id}/events`, 405, { headers: { origin } });
  assert.deepEqual([headers.get("access-control-allow-origin"), headers.get("vary")], [origin, "origin"]);
});

test("[P92] other methods and other paths are refused, and nothing else is described", async () => {
  for (const path of Object.keys(api.paths)) {
    const here = operations.filter((operation) => operation.path === path);
    const known = here.map(({ method }) => method);
    const actual = path.replace("{app_id}", app.id).replace("{key}", app.key).replaceAll(/[{}]/g, "");
    for (const method of ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"].filter((method) => !known.includes(method))) {
      const { headers } = await askElsewhere(method, actual, 405);
      assert.equal(headers.get("allow"), known.join(", "));
      assert.equal(headers.get("access-control-allow-origin"), here[0].tags.includes("Publishing") ? "*" : null);
    }
  }
  for (const path of ["/apps", "/apps/app-id", "/nothing"]) await askElsewhere("GET", path, 404);
  for (const path of [`/apps/${app.id}/channels/%ff`, "/up/%ff", "/%ff"]) {
    const { headers } = await askElsewhere("GET", path, 400);
    assert.equal(headers.get("connection"), "close");
  }
});

test("[P92] all that is described has come, or is excused", () => {
  const absent = answers.filter(({ name }) => !came.has(name));
  const without = Object.keys(OF_APPS).filter(withoutApp).map((id) => OF_APPS[id]);
  const excused = [...Object.values(EXCUSED), ...without].flat();
  const missing = absent.filter(({ name, code }) => !excused.includes(code ?? name));
  assert.deepEqual(missing.map(({ name }) => name), [], "answers that have not come");
  const needed = absent.map(({ name, code }) => code ?? name);
  assert.deepEqual(excused.filter((excuse) => !needed.includes(excuse)), [], "excuses that nothing needs");
  const sent = operations.flatMap(({ id, parameters, security }) =>
    [...parameters.map(({ name }) => name), ...security.flatMap(Object.keys)].map((name) => `${id} ${name}`));
  assert.deepEqual(sent.filter((name) => !came.has(name)), [], "parameters, and signs of who asks, that no request had");
});
