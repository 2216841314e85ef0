// ws: the conversation that docs/websocket.md shows, in whole.
import WebSocket from "ws";
import { api, key, say } from "./given.mjs";

const events = [];
const socket = new WebSocket(api.replace("http", "ws") + "/ws");
socket.on("open", () => socket.send(JSON.stringify({ type: "auth", token: key })));
socket.on("message", (data) => {
  const message = JSON.parse(data);
  if (message.type === "error") throw new Error(message.detail);
  if (message.type === "auth.ok") socket.send(JSON.stringify({ type: "session.create", profile: "foundation:base" }));
  if (message.type === "session.created")
    socket.send(JSON.stringify({ type: "execute", session_id: message.session_id, prompt: "stream 5" }));
  if (["token", "complete"].includes(message.type)) events.push(message.type);
  if (message.type === "complete") say({ events: [...new Set(events)] });
});
