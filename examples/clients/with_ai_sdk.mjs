// Vercel's AI SDK: text, a stream, and an object.
import assert from "node:assert";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText } from "ai";
import { z } from "zod";

const loraplex = createOpenAICompatible({
  name: "loraplex",
  baseURL: `${process.env.LORAPLEX_URL}/v1`,
  apiKey: process.env.LORAPLEX_API_KEY,
  supportsStructuredOutputs: true,
});
const prompt = "Turn on the lights in the kitchen";

const { text } = await generateText({ model: loraplex("smart-home"), prompt, maxOutputTokens: 40 });
assert(text);
console.log(text);

let streamed = "";
const stream = streamText({ model: loraplex("smart-home"), prompt, maxOutputTokens: 40 });
for await (const part of stream.textStream) streamed += part;
assert(streamed);

const schema = z.object({ room: z.string(), is_on: z.boolean() });
const { object } = await generateObject({ model: loraplex("base"), prompt, schema });
assert.equal(typeof object.is_on, "boolean");
