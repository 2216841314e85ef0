// npm's eventsource: reads an execution's events to the last, and comes back no more.
import { EventSource } from "eventsource";
import { api, headers, inBackground, newSession, say } from "./given.mjs";

const session = await newSession();
const request = await inBackground(session, "stream 5");
let requests = 0;
const events = [];
const source = new EventSource(`${api}/v1/sessions/${session}/executions/${request}/events`, {
  fetch: (url, init) => {
    requests += 1;
    return fetch(url, { ...init, headers: { ...init.headers, "X-API-Key": headers["X-API-Key"] } });
  },
});
for (const name of ["token", "complete"]) source.addEventListener(name, () => events.push(name));
source.onerror = () => {
  if (source.readyState === EventSource.CLOSED) say({ events, requests });
};
