// What every program here has: the server's address, a key, a session, and how it ends.
export const api = process.env.API;
export const key = process.env.KEY;
export const headers = { "X-API-Key": key, "Content-Type": "application/json" };

export async function ask(path, body) {
  const answer = await fetch(api + path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
  return answer.json();
}

export const newSession = async () => (await ask("/v1/sessions", { profile: "foundation:base" })).session_id;
export const inBackground = async (session, prompt) =>
  (await ask(`/v1/sessions/${session}/execute`, { prompt, background: true })).request_id;

// Prints one line of JSON and ends, whatever is still open.
export function say(found) {
  console.log(JSON.stringify(found));
  process.exit(0);
}
