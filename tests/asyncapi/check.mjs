// Prints what AsyncAPI's own parser says of the document whose path is given: its diagnostics, and how many messages it has.
import { readFileSync } from "node:fs";
import { Parser } from "@asyncapi/parser";

const { document, diagnostics } = await new Parser().parse(readFileSync(process.argv[2], "utf8"));
console.log(
  JSON.stringify({
    messages: document ? document.allMessages().all().length : -1,
    diagnostics: diagnostics.map(({ code, message, path }) => ({ code, message, path })),
  }),
);
