// urql with its default Accept: queries and a mutation are answered as JSON, and none is cut off.
import { Client, fetchExchange } from "@urql/core";
import { api, headers, newSession, say } from "./given.mjs";

const types = new Set();
const client = new Client({
  url: api + "/graphql",
  exchanges: [fetchExchange],
  preferGetMethod: false,
  fetchOptions: { headers: { "X-API-Key": headers["X-API-Key"] } },
  fetch: async (...given) => {
    const answer = await fetch(...given);
    types.add(answer.headers.get("content-type").split(";")[0]);
    return answer;
  },
});
process.on("unhandledRejection", (error) => {
  throw error;
});

const session = await newSession();
const ran = await client.mutation("mutation($s: ID!) { execute(sessionId: $s, prompt: \"hello\") { response } }", { s: session });
if (ran.error) throw ran.error;
let answered = 0;
for (let number = 0; number < 40; number += 1) {
  const found = await client.query(`{ me { role } s${number}: sessions { id } }`, {}, { requestPolicy: "network-only" });
  if (found.error) throw found.error;
  answered += 1;
}
say({ answered, types: [...types], response: ran.data.execute.response });
