// Lets pusher-js resume: after a lost connection a channel's missed
// publications come before the next ones, from any gateway, or the client is
// told that they are gone. Copy this file; it needs nothing else.
//
//   import { resume } from "./pusher-resume.js";
//   const pusher = resume(new Pusher(key, options));
//   pusher.subscribe("room").bind("dunlin:gap", (gap) => reload(gap));
//
// Call it before the first subscribe. A channel's `dunlin:gap` handlers get
// { channel, reason, earliest, latest } where something is missing.
//
// Why it looks under the bonnet: pusher-js hands frames on without the members
// that it does not know, and `position` is one of them. Tested with 8.6.

/** Makes a Pusher client resume its subscriptions; returns it. */
export function resume(pusher) {
  // Channel name -> { epoch, offset }: everything up to there was handled.
  const positions = new Map();

  const send = pusher.send_event.bind(pusher);
  pusher.send_event = (name, data, channel) => {
    if (name === "pusher:subscribe") {
      return send(name, { ...data, recover: positions.get(data.channel) ?? true }, channel);
    }
    if (name === "pusher:unsubscribe") positions.delete(data.channel);
    return send(name, data, channel);
  };

  const inner = (frame) => (typeof frame.data === "string" ? JSON.parse(frame.data) : frame.data);

  // Runs after pusher-js has called the handlers, so a position says: handled.
  const take = ({ data: text }) => {
    const frame = JSON.parse(text);
    if (frame.position) {
      move(frame.channel, frame.position);
    } else if (frame.event === "pusher_internal:subscription_succeeded") {
      move(frame.channel, inner(frame).position);
    } else if (frame.event === "dunlin:position") {
      const { channel, epoch, offset } = inner(frame);
      move(channel, { epoch, offset });
    } else if (frame.event === "dunlin:gap") {
      const gap = inner(frame);
      const [epoch, offset] = gap.latest.split("-");
      move(gap.channel, { epoch, offset: Number(offset) });
      pusher.channel(gap.channel)?.emit("dunlin:gap", gap);
    }
  };
  // What is under way when a channel is unsubscribed comes to nobody.
  const move = (channel, position) => {
    if (position && pusher.channel(channel)) positions.set(channel, position);
  };

  // Each connection has a transport of its own, which has the frames as they came.
  const listen = () => pusher.connection.connection.transport.bind("message", take);
  pusher.connection.bind("connected", listen);
  if (pusher.connection.state === "connected") listen();
  return pusher;
}
