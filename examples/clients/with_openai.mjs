// OpenAI's SDK for Node: chat and a stream.
import assert from "node:assert";
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: `${process.env.LORAPLEX_URL}/v1`,
  apiKey: process.env.LORAPLEX_API_KEY,
});
const messages = [{ role: "user", content: "Turn on the lights in the kitchen" }];

const answer = await client.chat.completions.create({ model: "smart-home", messages, max_tokens: 40 });
assert(answer.choices[0].message.content);
console.log(answer.model, answer.choices[0].message.content);

const stream = await client.chat.completions.create({
  model: "smart-home", messages, max_tokens: 40, stream: true,
});
let text = "";
for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
assert(text);
