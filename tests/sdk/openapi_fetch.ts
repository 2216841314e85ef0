// A round trip with openapi-fetch and the types that openapi-typescript makes. Prints one line of JSON.
import createClient from "openapi-fetch";
import type { paths } from "./generated/schema";

const client = createClient<paths>({ baseUrl: process.env.API!, headers: { "X-API-Key": process.env.KEY! } });

async function main() {
  const made = await client.POST("/v1/sessions", { body: { profile: "foundation:base" } });
  if (made.error) throw new Error(made.error.code);
  const session_id: string = made.data.session_id;
  const ran = await client.POST("/v1/sessions/{session_id}/execute", {
    params: { path: { session_id }, header: { "Idempotency-Key": "only-once" } },
    body: { prompt: "hello" },
  });
  if (ran.error) throw new Error(ran.error.code);
  if (typeof ran.data === "string" || !("response" in ran.data)) throw new Error("it is no whole result");
  const streamed = await client.POST("/v1/sessions/{session_id}/execute", {
    params: { path: { session_id } },
    body: { prompt: "hello", stream: true },
    parseAs: "stream",
  });
  if (streamed.error || !streamed.data) throw new Error("there is no stream");
  let text = "";
  for await (const chunk of streamed.data as unknown as AsyncIterable<Uint8Array>) text += new TextDecoder().decode(chunk);
  const execution = await client.GET("/v1/sessions/{session_id}/executions/{request_id}", {
    params: { path: { session_id, request_id: ran.data.request_id } },
  });
  const page = await client.GET("/v1/sessions", { params: { query: { limit: 10, status: ["active", "suspended"] } } });
  const missing = await client.GET("/v1/sessions/{session_id}", { params: { path: { session_id: "sess_nobody" } } });
  console.log(
    JSON.stringify({
      response: ran.data.response,
      tokens: ran.data.usage.total_tokens,
      events: text.split("\n").filter((line) => line.startsWith("event: ")).map((line) => line.slice(7)),
      status: execution.data?.status,
      listed: page.data?.sessions.map((one) => one.session_id).includes(session_id),
      code: missing.error?.code,
    }),
  );
}

void main();
