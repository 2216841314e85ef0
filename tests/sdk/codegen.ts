// A round trip with what openapi-typescript-codegen makes. Prints one line of JSON.
import { ApiError, OpenAPI, SessionsService, type ExecutionView, type Problem } from "./generated/codegen";

OpenAPI.BASE = process.env.API!;
OpenAPI.HEADERS = { "X-API-Key": process.env.KEY! };

async function main() {
  const session = await SessionsService.createSession({ profile: "foundation:base" });
  const id: string = session.session_id;
  const result = await SessionsService.execute(id, { prompt: "hello", stream: false });
  if (!("response" in result)) throw new Error("it was answered before it had ended");
  const tokens: number = result.usage.total_tokens;
  const events: string = await SessionsService.streamExecution(id, result.request_id);
  const execution: ExecutionView = await SessionsService.getExecution(id, result.request_id);
  const page = await SessionsService.listSessions();
  let code = "";
  try {
    await SessionsService.getSession("sess_nobody");
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    const problem: Problem = JSON.parse(JSON.stringify(error.body));
    code = problem.code;
  }
  console.log(
    JSON.stringify({
      response: result.response,
      tokens,
      events: events.split("\n").filter((line) => line.startsWith("event: ")).map((line) => line.slice(7)),
      status: execution.status,
      listed: page.sessions.map((one) => one.session_id).includes(id),
      code,
    }),
  );
}

void main();
