// graphql-ws: a mutation and a subscription on one socket.
import { createClient } from "graphql-ws";
import WebSocket from "ws";
import { api, key, newSession, say } from "./given.mjs";

const session = await newSession();
const client = createClient({
  url: api.replace("http", "ws") + "/graphql",
  webSocketImpl: WebSocket,
  connectionParams: { token: key },
});

async function all(query, variables) {
  const found = [];
  for await (const result of client.iterate({ query, variables })) {
    if (result.errors) throw new Error(JSON.stringify(result.errors));
    found.push(result.data);
  }
  return found;
}

const begun = await all("mutation($s: ID!) { startExecution(sessionId: $s, prompt: \"stream 5\") { requestId } }", { s: session });
const told = await all("subscription($s: ID!, $r: ID!) { executionStream(sessionId: $s, requestId: $r) { type } }", {
  s: session,
  r: begun[0].startExecution.requestId,
});
say({ events: [...new Set(told.map((one) => one.executionStream.type.toLowerCase()))] });
