// The playground: sends one prompt to several models and shows their answers as they come.
// Answers are only ever set as text, so nothing in them can become a part of the page.

const CHAT = "/console/playground/v1/chat/completions";
const TOP = 5; // so many tokens are compared where answers part
const SHORTEST_MS = 50; // of an answer, for its speed to be told
const form = document.getElementById("ask");
const parting = document.getElementById("parting");
const panes = document.getElementById("panes");
const progress = document.getElementById("progress");
const sendButton = document.getElementById("send");
const stopButton = document.getElementById("stop");
const code = document.getElementById("code");
let running = null;

function chosenModels() {
  const names = [...form.querySelectorAll("[name=model]")].map((field) => field.value.trim());
  const models = form.elements.base.checked ? [form.dataset.base, ...names] : names;
  return [...new Set(models.filter(Boolean))];
}

// The request's body without what only streaming needs.
function bodyFor(model) {
  const value = (name) => form.elements[name].value.trim();
  const messages = [{ role: "user", content: form.elements.prompt.value }];
  if (value("system")) messages.unshift({ role: "system", content: form.elements.system.value });
  const body = { model, messages };
  for (const name of ["max_tokens", "temperature", "top_p", "seed"]) {
    if (value(name)) body[name] = Number(value(name));
  }
  if (form.elements.logprobs.checked) Object.assign(body, { logprobs: true, top_logprobs: TOP });
  if (form.elements.stop.value) body.stop = [form.elements.stop.value];
  return body;
}

class Pane {
  constructor(model) {
    this.body = bodyFor(model);
    this.tokens = []; // with their log-probabilities, if they were asked for
    const part = document.getElementById("pane").content.cloneNode(true);
    this.element = part.firstElementChild;
    this.element.querySelector("h2").textContent = model;
    this.answer = this.element.querySelector(".answer");
    this.answer.setAttribute("aria-label", `Answer of ${model}`);
    this.element.addEventListener("click", (event) => {
      const kind = event.target.dataset.code;
      if (kind) showCode(kind === "curl" ? asCurl(this.body) : asPython(this.body));
    });
    panes.append(part);
  }

  fact(name, text) {
    this.element.querySelector(`[data-fact=${name}]`).textContent = text;
  }

  fail(message) {
    const place = this.element.querySelector("[role=alert]");
    place.textContent = message;
    place.hidden = false;
  }

  async run(signal) {
    const began = performance.now();
    try {
      const answer = await this.ask(signal);
      if (answer) await this.read(answer, began);
    } catch (error) {
      this.fail(signal.aborted ? "Stopped." : whyBroken(error));
    }
  }

  async ask(signal) {
    const session = JSON.parse(document.body.getAttribute("hx-headers:inherited"));
    const answer = await fetch(CHAT, {
      method: "POST",
      signal,
      headers: { "content-type": "application/json", "hx-request": "true", ...session },
      body: JSON.stringify({ ...this.body, stream: true, stream_options: { include_usage: true } }),
    });
    const ended = answer.headers.get("hx-redirect");
    if (ended) {
      location.assign(ended);
      return null;
    }
    const header = (name) => answer.headers.get(name);
    this.fact("request", header("x-request-id") ?? "–");
    const served = header("x-adapter-id");
    if (served) {
      this.element.querySelector(".served").textContent =
        `${served}@${header("x-adapter-version")}, found in: ${header("x-adapter-tier")}`;
    }
    if (answer.ok) return answer;
    this.fail(await messageOf(answer));
    return null;
  }

  async read(answer, began) {
    let first = 0;
    let last = 0;
    let usage = null;
    for await (const data of eventsOf(answer)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      usage = chunk.usage ?? usage;
      const choice = chunk.choices?.[0];
      this.tokens.push(...(choice?.logprobs?.content ?? []));
      const delta = choice?.delta ?? {};
      const text = (delta.reasoning ?? delta.reasoning_content ?? "") + (delta.content ?? "");
      if (text) {
        last = performance.now();
        if (!first) {
          first = last;
          this.fact("first", `${Math.round(first - began)} ms`);
        }
        this.answer.append(text);
      }
      if (choice?.finish_reason) this.fact("end", choice.finish_reason);
    }
    if (!usage) return;
    this.fact("in", usage.prompt_tokens);
    this.fact("out", usage.completion_tokens);
    // Events that arrive together say nothing about the speed.
    if (usage.completion_tokens > 1 && last - first >= SHORTEST_MS) {
      this.fact("rate", (((usage.completion_tokens - 1) * 1000) / (last - first)).toFixed(1));
    }
  }
}

// Browsers throw a TypeError when a connection fails.
function whyBroken(error) {
  if (!(error instanceof TypeError)) return `The answer broke off: ${error.message}`;
  document.dispatchEvent(new Event("console:away"));
  return "The answer broke off: the server does not answer. Your input is still here: send it again.";
}

async function messageOf(answer) {
  if (!(answer.headers.get("content-type") ?? "").includes("json")) {
    return `The server refused with status ${answer.status}. Reload the page, then try again.`;
  }
  return (await answer.json()).error?.message ?? `The server answered with ${answer.status}.`;
}

// Yields the data of each server-sent event.
async function* eventsOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  }
}

// Code for a shell: between single quotes only a single quote has a meaning.
function asCurl(body) {
  const json = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return [
    `curl ${location.origin}/v1/chat/completions \\`,
    '  -H "Authorization: Bearer $LORAPLEX_API_KEY" \\',
    "  -H 'Content-Type: application/json' \\",
    `  -d '${json}'`,
  ].join("\n");
}

// The body's strings, numbers, lists and objects are the same in JSON and in Python.
function asPython(body) {
  const fields = Object.entries(body).map(
    ([name, value]) => `    ${name}=${value === true ? "True" : JSON.stringify(value)},`,
  );
  return [
    "import os",
    "",
    "from openai import OpenAI",
    "",
    "client = OpenAI(",
    `    base_url="${location.origin}/v1", api_key=os.environ["LORAPLEX_API_KEY"]`,
    ")",
    "answer = client.chat.completions.create(",
    ...fields,
    ")",
    "print(answer.choices[0].message.content)",
  ].join("\n");
}

// Shows the first token in which an answer differs from the first answer, and how probable each
// model found what both of them say there.
function showParting([one, ...others]) {
  for (const other of others) {
    const same = one.tokens.findIndex((token, i) => token.token !== other.tokens[i]?.token);
    const at = same < 0 ? one.tokens.length : same;
    const part = document.getElementById("parted").content.cloneNode(true);
    const [name, otherName] = [one.body.model, other.body.model];
    part.querySelector("h2").textContent = `${name} and ${otherName}`;
    const before = one.tokens.slice(0, at).map((token) => token.token).join("");
    const says = part.querySelector("p");
    const [mine, theirs] = [one.tokens[at], other.tokens[at]];
    if (mine && theirs) {
      says.textContent = `They differ from token ${at + 1} on, after: ${JSON.stringify(before.slice(-120))}`;
      const heads = part.querySelectorAll("th.num");
      [heads[0].textContent, heads[1].textContent] = [name, otherName];
      part.querySelector("tbody").append(...rowsOf(mine, theirs));
    } else {
      says.textContent = mine || theirs
        ? `The ${at} tokens of the shorter answer are the same.`
        : `All ${at} tokens are the same.`;
      part.querySelector(".scroll").remove();
    }
    parting.append(part);
  }
}

function rowsOf(mine, theirs) {
  const [of, ofOther] = [mine, theirs].map(
    (each) => new Map([each, ...each.top_logprobs].map((top) => [top.token, Math.exp(top.logprob)])),
  );
  const likeliest = (token) => Math.max(of.get(token) ?? 0, ofOther.get(token) ?? 0);
  const tokens = [...new Set([...of.keys(), ...ofOther.keys()])];
  return tokens.sort((a, b) => likeliest(b) - likeliest(a)).map((token) => {
    const row = document.createElement("tr");
    const head = document.createElement("th");
    head.scope = "row";
    head.className = "mono";
    head.textContent = JSON.stringify(token);
    row.append(head, cellOf(of, token, mine), cellOf(ofOther, token, theirs));
    return row;
  });
}

function cellOf(probabilities, token, chosen) {
  const cell = document.createElement("td");
  cell.className = "num";
  const found = probabilities.get(token);
  const text = found === undefined ? `not in its first ${TOP}` : `${(found * 100).toFixed(1)} %`;
  cell.textContent = token === chosen.token ? `${text} (chosen)` : text;
  return cell;
}

function showCode(text) {
  code.querySelector("pre").textContent = text;
  document.getElementById("copied").textContent = "";
  code.showModal();
}

// Browsers have a clipboard over HTTPS and on localhost only. Elsewhere the text is selected.
document.getElementById("copy").addEventListener("click", async () => {
  const place = code.querySelector("pre");
  const copied = document.getElementById("copied");
  try {
    await navigator.clipboard.writeText(place.textContent);
    copied.textContent = "Copied.";
  } catch {
    getSelection().selectAllChildren(place);
    copied.textContent = "Press Ctrl+C to copy.";
  }
});

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (running) return;
  const models = chosenModels();
  if (!models.length) {
    progress.textContent = "Choose the base or name an adapter.";
    return;
  }
  panes.replaceChildren();
  parting.replaceChildren();
  running = new AbortController();
  sendButton.disabled = true;
  stopButton.disabled = false;
  progress.textContent = "The models answer…";
  const asked = models.map((model) => new Pane(model));
  panes.scrollIntoView({ block: "nearest" });
  await Promise.all(asked.map((pane) => pane.run(running.signal)));
  showParting(asked.filter((pane) => pane.tokens.length));
  running = null;
  sendButton.disabled = false;
  stopButton.disabled = true;
  progress.textContent = "All answers are complete.";
});

stopButton.addEventListener("click", () => running?.abort());

form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});

let typed = 0;
form.addEventListener("input", async (event) => {
  if (event.target.name !== "model") return;
  const mine = ++typed;
  await new Promise((resolve) => setTimeout(resolve, 200));
  if (mine !== typed) return;
  const search = encodeURIComponent(event.target.value);
  const answer = await fetch(`/console/playground/models?search=${search}`).catch(() => null);
  if (!answer?.ok || answer.redirected || mine !== typed) return;
  const options = (await answer.json()).map((name) => new Option("", name));
  document.getElementById("models").replaceChildren(...options);
});
