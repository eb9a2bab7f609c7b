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

async function produce() {
  const producer = kafka.producer({ idempotent: true, maxInFlightRequests: 1 });
  await producer.connect();
  for await (const line of readline.createInterface({ input: process.stdin })) {
    await producer.send({ topic: env.TOPIC, acks: -1, messages: [{ value: line }] });
    console.log(line);
  }
  await producer.disconnect();
}

async function consume() {
  const consumer = kafka.consumer({ groupId: env.GROUP });
  consumer.on(consumer.events.CRASH, ({ payload }) => {
    if (!payload.restart) fail(payload.error);
  });
  process.on("SIGTERM", () => process.exit(0));
  await consumer.connect();
  await consumer.subscribe({ topic: env.TOPIC, fromBeginning: true });
  await consumer.run({ eachMessage: async ({ message }) => console.log(message.value.toString()) });
}

function fail(error) {
  console.error(String(error));
  process.exit(1);
}

(process.argv[2] === "produce" ? produce() : consume()).catch(fail);
