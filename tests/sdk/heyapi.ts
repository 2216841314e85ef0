// A round trip with what @hey-api/openapi-ts makes. Prints one line of JSON.
import { createSession, execute, getExecution, getSession, listSessions, streamExecution } from "./generated/heyapi";
import { client } from "./generated/heyapi/client.gen";

client.setConfig({ baseUrl: process.env.API!, headers: { "X-API-Key": process.env.KEY! } });

async function main() {
  const made = await createSession({ body: { profile: "foundation:base" }, throwOnError: true });
  const session_id: string = made.data.session_id;
  const ran = await execute({ path: { session_id }, body: { prompt: "hello", stream: false }, throwOnError: true });
  if (!("response" in ran.data)) throw new Error("it was answered before it had ended");
  const request_id: string = ran.data.request_id;
  const events: string[] = [];
  const { stream } = await streamExecution({
    path: { session_id, request_id },
    onSseEvent: (event) => events.push(event.event ?? ""),
  });
  for await (const _ of stream);
  const execution = await getExecution({ path: { session_id, request_id }, throwOnError: true });
  const page = await listSessions({ query: { limit: 10, status: ["active", "suspended"] }, throwOnError: true });
  const missing = await getSession({ path: { session_id: "sess_nobody" } });
  console.log(
    JSON.stringify({
      response: ran.data.response,
      tokens: ran.data.usage.total_tokens,
      events,
      status: execution.data.status,
      listed: page.data.sessions.map((one) => one.session_id).includes(session_id),
      code: missing.error?.code,
    }),
  );
}

void main();
