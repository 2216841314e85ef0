// Chromium, logged in by a cookie: its own EventSource, and @microsoft/fetch-event-source, on a page of the server.
import { readFileSync } from "node:fs";
import puppeteer from "puppeteer-core";
import { api, say } from "./given.mjs";

const library = (name) => readFileSync(`node_modules/@microsoft/fetch-event-source/lib/esm/${name}.js`, "utf8");
const browser = await puppeteer.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });
try {
  await browser.setCookie({ name: "amplifier", value: process.env.COOKIE, domain: "127.0.0.1", path: "/" });
  const page = await browser.newPage();
  await page.setRequestInterception(true);
  page.on("request", (request) => {
    const name = new URL(request.url()).pathname.match(/^\/library\/(\w+)$/)?.[1];
    if (name) request.respond({ contentType: "text/javascript", body: library(name).replaceAll("'./", "'/library/") });
    else request.continue();
  });
  await page.goto(`${api}/health`);
  say(await page.evaluate(inPage, process.env.CSRF));
} finally {
  await browser.close();
}

async function inPage(token) {
  const headers = { "Content-Type": "application/json", "X-CSRF-Token": token };
  const post = (path, body) => fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
  const session = (await (await post("/v1/sessions", { profile: "foundation:base" })).json()).session_id;
  const begun = await (await post(`/v1/sessions/${session}/execute`, { prompt: "stream 5", background: true })).json();

  const native = await new Promise((resolve) => {
    const found = { events: [], opened: 0 };
    const source = new EventSource(`/v1/sessions/${session}/executions/${begun.request_id}/events`);
    source.onopen = () => (found.opened += 1);
    for (const name of ["token", "complete"]) source.addEventListener(name, () => found.events.push(name));
    source.onerror = () => source.readyState === EventSource.CLOSED && resolve(found);
  });

  const { fetchEventSource } = await import("/library/index");
  const fetched = { events: [] };
  await fetchEventSource(`/v1/sessions/${session}/execute`, {
    method: "POST",
    headers: { ...headers, "Idempotency-Key": "once" },
    body: JSON.stringify({ prompt: "stream 5", stream: true }),
    openWhenHidden: true,
    onmessage: (event) => fetched.events.push(event.event),
    onerror: (error) => {
      throw error;
    },
  });
  return { native, fetched };
}
