// Produce to and consume from a fabric with kafkajs.
//
//   client.js produce < lines    a record for each line; prints the lines that are acknowledged
//   client.js consume            prints the value of each record, until it is ended
//
// BOOTSTRAP, TOPIC, GROUP and SIGN_IN are in the environment. SIGN_IN is oauth (a
// Globus login, by way of the command that DIASPORA names) or plain (an access key:
// KEY_ID and KEY_SECRET).
"use strict";

const { execFile } = require("node:child_process");
const readline = require("node:readline");
const { promisify } = require("node:util");
const { Kafka, logLevel } = require("kafkajs");

const env = process.env;

const token = async () => {
  const { stdout } = await promisify(execFile)(env.DIASPORA, ["token"]);
  return { value: stdout.trim() };
};

const kafka = new Kafka({
  brokers: env.BOOTSTRAP.split(","),
  sasl:
    env.SIGN_IN === "oauth"
      ? { mechanism: "oauthbearer", oauthBearerProvider: token }
      : { mechanism: "plain", username: env.KEY_ID, password: env.KEY_SECRET },
  ssl: false,
  logLevel: logLevel.ERROR,
  logCreator: () => ({ log }) => console.error(log.message, log.error || ""),
  retry: { retries: 30, maxRetryTime: 1000 },
});

// kafkajs gives up for good when a connection is closed during a login, which is
// how a broker that starts looks like, and one whose time is over before the new
// token is there. A refusal comes with a sentence instead.
const passes = ({ message, retriable, name }) =>
  retriable ||
  name === "KafkaJSNumberOfRetriesExceeded" ||
  /Closed connection|Not connected|ECONNREFUSED|ECONNRESET|timed? ?out/i.test(message);

async function insist(action) {
  for (;;) {
    try {
      return await action();
    } catch (error) {
      if (!passes(error)) throw error;
      console.error(`again: ${error}`);
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
  }
}

async function produce() {
  const producer = kafka.producer({ idempotent: true, maxInFlightRequests: 1 });
  await insist(() => producer.connect());
  const lines = [];
  let more = () => {};
  let open = true;
  const input = readline.createInterface({ input: process.stdin });
  input.on("line", (line) => more(lines.push(line)));
  input.on("close", () => more((open = false)));
  while (open || lines.length > 0) {
    if (lines.length === 0) await new Promise((resolve) => (more = resolve));
    const batch = lines.splice(0);
    if (batch.length === 0) continue;
    const messages = batch.map((value) => ({ value }));
    await insist(() => producer.send({ topic: env.TOPIC, acks: -1, messages }));
    for (const line of batch) console.log(line);
  }
  await producer.disconnect();
}

async function consume() {
  process.on("SIGTERM", () => process.exit(0));
  for (;;) {
    const consumer = kafka.consumer({ groupId: env.GROUP });
    const crashed = new Promise((resolve) =>
      consumer.on(consumer.events.CRASH, ({ payload }) => payload.restart || resolve(payload.error))
    );
    await insist(() => consumer.connect());
    await insist(() => consumer.subscribe({ topic: env.TOPIC, fromBeginning: true }));
    await consumer.run({ eachMessage: async ({ message }) => console.log(message.value.toString()) });
    const error = await crashed;
    if (!passes(error)) throw error;
    console.error(`again: ${error}`);
    await consumer.disconnect();
  }
}

function fail(error) {
  console.error(String(error));
  process.exit(1);
}

(process.argv[2] === "produce" ? produce() : consume()).catch(fail);
