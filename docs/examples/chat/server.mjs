// The backend of a small chat. It serves the page, says who may subscribe, and publishes
// what is said: clients cannot publish into encrypted channels, and by one way for all
// messages each room has one order, which everybody sees.
//
// It believes whoever gives a name. A real application knows its users.

import { randomBytes, randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import Pusher from "pusher";

const { PUSHER_HOST: host = "127.0.0.1", PUSHER_PORT: port = "6001", PUSHER_APP_KEY: key = "app-key" } = process.env;
const pusher = new Pusher({
  host,
  port,
  key,
  appId: process.env.PUSHER_APP_ID ?? "app-id",
  secret: process.env.PUSHER_APP_SECRET ?? "app-secret",
  // Pages that have the key of an earlier run ask for this one by themselves.
  encryptionMasterKeyBase64: process.env.PUSHER_ENCRYPTION_KEY ?? randomBytes(32).toString("base64"),
  timeout: 8_000,
});

const ROOMS = ["presence-chat", "private-encrypted-chat"];
const NAME_MAX = 32;
const TEXT_MAX = 2_000;
const BODY_BYTES_MAX = 32 * 1024;

const HEADERS = {
  "content-security-policy": [
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:",
    `connect-src 'self' ws://${host}:${port}`,
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
  ].join("; "),
  "cache-control": "no-cache",
  "referrer-policy": "no-referrer",
  "x-content-type-options": "nosniff",
};

// Path -> what is answered. These files and no others: no path leads out of here.
const files = new Map();
const here = (name) => new URL(name, import.meta.url);
for (const [path, type, file] of [
  ["/", "text/html", here("index.html")],
  ["/style.css", "text/css", here("style.css")],
  ["/chat.js", "text/javascript", here("chat.js")],
  ["/pusher-resume.js", "text/javascript", here("../pusher-resume.js")],
  ["/pusher.js", "text/javascript", createRequire(import.meta.url).resolve("pusher-js/dist/web/pusher-with-encryption.min.js")],
]) {
  files.set(path, { type, body: await readFile(file) });
}
const config = JSON.stringify({ key, host, port: Number(port) });
files.set("/config.js", { type: "text/javascript", body: `export default ${config};` });

const actions = { "/auth": authorize, "/message": publish };

/** An error that whoever sent the request is told of. */
const refusal = (status, message) => Object.assign(new Error(message), { status });
const json = (value, status = 200) => ({ status, type: "application/json", body: JSON.stringify(value) });

/** A text of a form, if it is one that may be. */
function text(form, field, fits, expected) {
  const value = (form.get(field) ?? "").trim();
  if (!fits(value)) throw refusal(400, `${field}: expected ${expected}`);
  return value;
}

const isName = (name) => name && name.length <= NAME_MAX && !/\p{C}/u.test(name);
const userOf = (form) => text(form, "name", isName, `1 to ${NAME_MAX} characters that can be seen`);

/** What pusher-js asks before it subscribes. */
function authorize(form) {
  const user = userOf(form);
  const socketId = text(form, "socket_id", (id) => /^\d+\.\d+$/.test(id), "the id of a connection");
  const channel = form.get("channel_name");
  if (!ROOMS.includes(channel)) throw refusal(403, "there is no such room");
  return pusher.authorizeChannel(socketId, channel, channel.startsWith("presence-") ? { user_id: user } : undefined);
}

async function publish(form) {
  const user = userOf(form);
  const channel = text(form, "room", (name) => ROOMS.includes(name), ROOMS.join(" or "));
  const said = text(form, "text", (said) => said && said.length <= TEXT_MAX, `1 to ${TEXT_MAX} characters`);
  const data = { user, text: said, at: Date.now() };
  const batch = [{ channel, name: "message", data, idempotency_key: randomUUID() }];
  try {
    // When no good answer comes it is sent once more. The SDK has put what it encrypted
    // into the batch, so it is the same, byte for byte, and by its key published once.
    await pusher.triggerBatch(batch).catch((error) => {
      if (error.status < 500) throw error;
      return pusher.post({ path: "/batch_events", body: { batch } });
    });
  } catch (error) {
    console.error(`not published: ${error.message}`, error.body ?? error.error?.message ?? "");
    throw refusal(502, error.status < 500 ? "the server refuses it" : "the server did not take it in time");
  }
  return {};
}

async function formOf(request) {
  const { origin, host: own } = request.headers;
  if (origin && !origin.endsWith(`//${own}`)) throw refusal(403, "only the chat's own page may do this");
  // What says how long it is cannot be longer.
  if (!(Number(request.headers["content-length"]) <= BODY_BYTES_MAX)) {
    throw refusal(413, `expected a body with a Content-Length of at most ${BODY_BYTES_MAX}`);
  }
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return new URLSearchParams(Buffer.concat(chunks).toString());
}

async function answerTo(request) {
  const path = request.url.split("?")[0];
  const reads = request.method === "GET" || request.method === "HEAD";
  if (reads && files.has(path)) return files.get(path);
  if (request.method === "POST" && Object.hasOwn(actions, path)) return json(await actions[path](await formOf(request)));
  throw refusal(404, `nothing answers to ${request.method} here`);
}

const server = createServer(async (request, response) => {
  const { status = 200, type, body } = await answerTo(request).catch((error) => {
    // Whoever goes away while sending is no defect.
    if (!error.status && error.code !== "ECONNRESET") console.error(error);
    // What has not been read of the request is not read any more.
    response.setHeader("connection", "close");
    return json({ error: error.status ? error.message : "this is a defect of the chat" }, error.status ?? 500);
  });
  response.writeHead(status, { ...HEADERS, "content-type": `${type}; charset=utf-8` }).end(body);
});
server.listen(Number(process.env.PORT ?? 8080), "127.0.0.1", () => {
  console.log(`the chat is at http://127.0.0.1:${server.address().port}`);
});
