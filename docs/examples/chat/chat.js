// The page of the chat: one connection, two rooms. What others say is only ever put into
// the page as text.

import config from "./config.js";
import { resume } from "./pusher-resume.js";

const ROWS_MAX = 500;
/** How often it is told that somebody goes on typing, and for how long that is believed. */
const TYPING_MS = { told: 2_000, believed: 4_000 };
const STATES = {
  initialized: "not connected",
  connecting: "connecting…",
  connected: "connected",
  reconnecting: "connection lost, connecting again…",
  unavailable: "no connection, trying again…",
  disconnected: "disconnected",
  failed: "this browser cannot connect",
};

const byId = (id) => document.getElementById(id);
const part = (inside, role) => inside.querySelector(`[data-role=${role}]`);

/** An element with a role for styles and tests. */
function element(tag, role, text) {
  const made = document.createElement(tag);
  made.dataset.role = role;
  made.textContent = text;
  return made;
}

/** The first letter of a name in a colour that it always has. */
function badge(user) {
  const made = element("span", "badge", [...user][0].toUpperCase());
  made.style.setProperty("--hue", [...user].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 360, 7));
  made.setAttribute("aria-hidden", "true");
  return made;
}

byId("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  const user = byId("name").value.trim();
  if (!user) return;
  byId("enter").hidden = true;
  byId("chat").hidden = false;
  const pusher = connect(user);
  const rooms = [...document.querySelectorAll(".room")].map((section) => openRoom(pusher, section, user));
  showMembers(rooms[0], user);
  showTyping(rooms[0], user);
  part(rooms[0].section, "text").focus();
});

/** Connects, and shows how the connection is. */
function connect(user) {
  const pusher = resume(new Pusher(config.key, {
    cluster: "",
    wsHost: config.host,
    wsPort: config.port,
    forceTLS: false,
    enabledTransports: ["ws"],
    channelAuthorization: { endpoint: "auth", params: { name: user } },
  }));
  let reason = "";
  const show = (state) => {
    byId("state").dataset.state = state;
    byId("state").textContent = state === "disconnected" && reason ? reason : STATES[state];
    if (state === "connected") return;
    for (const section of document.querySelectorAll(".room[data-state=live]")) section.dataset.state = "waiting";
  };
  pusher.connection.bind("error", ({ error }) => (reason = error?.data?.message ?? ""));
  pusher.connection.bind("state_change", ({ current }) => show(current));
  // pusher-js says "connected" until it tries again; this it says at once.
  pusher.connection.bind("connecting_in", () => show("reconnecting"));
  show(pusher.connection.state);
  return pusher;
}

/** Follows a room, shows what is said there, and sends what is typed. */
function openRoom(pusher, section, user) {
  const channel = pusher.subscribe(section.dataset.channel);
  const [log, form, input, result] = ["log", "form", "text", "result"].map((role) => part(section, role));

  const show = (kind, ...parts) => {
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    const row = document.createElement("li");
    row.dataset.kind = kind;
    row.append(...parts);
    log.append(row);
    if (log.children.length > ROWS_MAX) log.firstChild.remove();
    // Whoever reads further up is left there.
    if (atEnd) log.scrollTop = log.scrollHeight;
    return row;
  };

  channel.bind("message", ({ user: from, text, at }) => {
    const time = element("time", "time", new Date(at).toLocaleTimeString([], { timeStyle: "short" }));
    const row = show("message", badge(from), element("b", "user", from), time, element("p", "said", text));
    row.classList.toggle("own", from === user);
  });
  channel.bind("dunlin:gap", () => show("gap", "Some messages may be missing here."));
  channel.bind("pusher:subscription_succeeded", () => (section.dataset.state = "live"));
  channel.bind("pusher:subscription_error", ({ status, error }) => {
    section.dataset.state = "refused";
    result.textContent = `This room is closed to you (${status ?? "no answer"}: ${error ?? "unknown"}). Load the page again to retry.`;
  });

  // One after the other, so that what is said first comes first.
  let sent = Promise.resolve();
  const send = async (text) => {
    try {
      const body = new URLSearchParams({ name: user, room: channel.name, text });
      const answer = await fetch("message", { method: "POST", body });
      if (!answer.ok) throw new Error((await answer.json()).error);
      result.textContent = "";
    } catch (error) {
      result.textContent = `Trouble sending: ${error.message}.`;
      input.value ||= text;
    }
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = input.value.trim();
    if (!text) return;
    input.value = "";
    sent = sent.then(() => send(text));
  });
  return { section, channel, show };
}

/** Who is there, and who comes and goes. */
function showMembers({ channel, show }, user) {
  const list = () => {
    const users = [];
    channel.members.each(({ id }) => users.push(id));
    users.sort((one, other) => one.localeCompare(other));
    byId("count").textContent = channel.members.count;
    byId("members").replaceChildren(...users.map((id) => {
      const row = document.createElement("li");
      row.dataset.user = id;
      row.append(badge(id), id === user ? `${id} (you)` : id);
      return row;
    }));
  };
  channel.bind("pusher:subscription_succeeded", list);
  channel.bind("pusher:member_added", ({ id }) => (list(), show("note", `${id} has come`)));
  channel.bind("pusher:member_removed", ({ id }) => (list(), show("note", `${id} has left`)));
}

/** Who is typing: told by events of clients, and forgotten when a message comes or nothing more. */
function showTyping({ section, channel }, user) {
  const typing = new Map();
  const show = () => {
    const users = [...typing.keys()];
    const verb = users.length === 1 ? "is" : "are";
    part(section, "typing").textContent = users.length ? `${users.join(", ")} ${verb} typing…` : "";
  };
  const forget = (id) => {
    clearTimeout(typing.get(id));
    typing.delete(id);
    show();
  };
  channel.bind("client-typing", (_, { user_id: id }) => {
    if (id === user) return;
    clearTimeout(typing.get(id));
    typing.set(id, setTimeout(forget, TYPING_MS.believed, id));
    show();
  });
  channel.bind("message", ({ user: id }) => forget(id));
  channel.bind("pusher:member_removed", ({ id }) => forget(id));

  let told = 0;
  part(section, "text").addEventListener("input", ({ target }) => {
    const due = target.value && Date.now() - told > TYPING_MS.told;
    if (due && channel.subscribed && channel.trigger("client-typing", {})) told = Date.now();
  });
  part(section, "form").addEventListener("submit", () => (told = 0));
}
